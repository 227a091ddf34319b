"""`config.json` as a TransformerConfig: tables of keys, of what an architecture fixes, and of what it does not support.

Files of transformers 4 and 5 are read alike: the rotation is in `rope_theta` and `rope_scaling`, or in
`rope_parameters`; the dtype in `torch_dtype` or `dtype`.
"""

from collections.abc import Mapping
from typing import Any

from jaxquant import errors
from jaxquant.interop import families
from jaxquant.models import config as model_config

# By family. Our field: their key, or the first of several that stands there.
_LLAMA = {
    'vocabulary': 'vocab_size', 'width': 'hidden_size', 'layers': 'num_hidden_layers', 'heads': 'num_attention_heads',
    'kv_heads': 'num_key_value_heads', 'head_dim': 'head_dim', 'feed_forward': 'intermediate_size',
    'max_length': 'max_position_embeddings', 'norm_epsilon': 'rms_norm_eps', 'activation': 'hidden_act',
    'tied': 'tie_word_embeddings', 'sliding_window': 'sliding_window',
}
_BERT = {
    'vocabulary': 'vocab_size', 'width': 'hidden_size', 'layers': 'num_hidden_layers', 'heads': 'num_attention_heads',
    'feed_forward': 'intermediate_size', 'max_length': 'max_position_embeddings', 'norm_epsilon': 'layer_norm_eps',
    'activation': 'hidden_act', 'token_types': 'type_vocab_size',
}
KEYS = {
    'llama': _LLAMA | {'qkv_bias': 'attention_bias', 'output_bias': 'attention_bias', 'mlp_bias': 'mlp_bias'},
    'mistral': _LLAMA,
    'qwen2': _LLAMA,
    'qwen3': _LLAMA | {'qkv_bias': 'attention_bias', 'output_bias': 'attention_bias'},
    'opt': {
        'vocabulary': 'vocab_size', 'width': 'hidden_size', 'layers': 'num_hidden_layers',
        'heads': 'num_attention_heads', 'feed_forward': 'ffn_dim', 'max_length': 'max_position_embeddings',
        'activation': 'activation_function', 'tied': 'tie_word_embeddings',
        'bias': 'enable_bias', 'embedding_width': 'word_embed_proj_dim',
    },
    'bloom': {
        'vocabulary': 'vocab_size', 'width': ('hidden_size', 'n_embed'), 'layers': ('n_layer', 'num_hidden_layers'),
        'heads': ('n_head', 'num_attention_heads'), 'norm_epsilon': 'layer_norm_epsilon', 'max_length': 'seq_length',
        'tied': 'tie_word_embeddings',
    },
    'gpt2': {
        'vocabulary': 'vocab_size', 'width': 'n_embd', 'layers': 'n_layer', 'heads': 'n_head',
        'feed_forward': 'n_inner', 'max_length': 'n_positions', 'norm_epsilon': 'layer_norm_epsilon',
        'activation': 'activation_function', 'tied': 'tie_word_embeddings',
    },
    'bert': _BERT, 'roberta': _BERT, 'xlm-roberta': _BERT,
}

# What transformers takes for a key that a file leaves out, where that is not our default.
_RMS = {'norm': 'rms', 'norm_epsilon': 1e-6}
_LAYER = {'norm': 'layer', 'gated': False, 'bias': True, 'tied': True}
_ENCODER = _LAYER | {
    'positions': 'learned', 'activation': 'gelu', 'causal': False, 'post_norm': True, 'norm_epsilon': 1e-12,
    'token_types': 2, 'max_length': 512}
DEFAULTS = {
    'llama': _RMS, 'mistral': _RMS | {'max_length': 4096 * 32}, 'qwen2': _RMS | {'qkv_bias': True, 'max_length': 32768},
    'qwen3': _RMS | {'head_norm': True, 'head_dim': 128, 'max_length': 32768},
    'opt': _LAYER | {'positions': 'learned', 'activation': 'relu'},
    'bloom': _LAYER | {'positions': 'alibi', 'activation': 'gelu_new', 'embedding_norm': True},
    'gpt2': _LAYER | {'positions': 'learned', 'activation': 'gelu_new', 'max_length': 1024},
    'bert': _ENCODER, 'roberta': _ENCODER, 'xlm-roberta': _ENCODER,
}

# Keys with the only value that we evaluate, which is also that of a file without them.
REQUIRED = {
    'llama': {'pretraining_tp': 1, 'partial_rotary_factor': 1.0},
    'mistral': {'partial_rotary_factor': 1.0}, 'qwen2': {'partial_rotary_factor': 1.0},
    'qwen3': {'partial_rotary_factor': 1.0},
    'opt': {'_remove_final_layer_norm': False, 'layer_norm_elementwise_affine': True},
    'bloom': {'apply_residual_connection_post_layernorm': False},
    'gpt2': {'scale_attn_weights': True, 'scale_attn_by_inverse_layer_idx': False, 'add_cross_attention': False},
    **dict.fromkeys(('bert', 'roberta', 'xlm-roberta'), {
        'position_embedding_type': 'absolute', 'is_decoder': False, 'tie_word_embeddings': True}),
}
# Positions of a RoBERTa are counted from the one behind that of padding.
for _kind in ('roberta', 'xlm-roberta'):
  REQUIRED[_kind] = REQUIRED[_kind] | {'pad_token_id': families.FAMILIES[_kind].skipped - 1}

# The window of all layers, for a file that names none; None: there is no window then.
WINDOWS = {'mistral': 4096}
# Those that have one where a switch says so, and then perhaps not in all layers.
_SWITCHED = ('qwen2', 'qwen3')
_ACTIVATIONS = {
    'silu': 'silu', 'swish': 'silu', 'relu': 'relu', 'gelu': 'gelu', 'gelu_new': 'gelu_tanh',
    'gelu_pytorch_tanh': 'gelu_tanh', 'gelu_fast': 'gelu_tanh',
}
_ROTATIONS = ('default', 'linear', 'llama3')
# Sizes, which are at least one, and what none of them exceeds.
_SIZES = ('vocabulary', 'width', 'layers', 'heads', 'kv_heads', 'head_dim', 'feed_forward', 'max_length',
          'sliding_window', 'embedding_width')
_MOST = 2**24
_LARGEST = 1e30  # of any other number; JAX takes no integer beyond 64 bits, so that they become floats


def read(config: Mapping[str, Any], where: str = 'config.json') -> model_config.TransformerConfig:
  """The architecture that a `config.json` describes.

  Args:
    config: its values.
    where: the file, for messages.

  Raises:
    UserError: the architecture is unknown, lacks a size, or asks for something that we do not evaluate.
  """
  families.find(config)
  kind = config['model_type']
  for key, value in REQUIRED[kind].items():
    if config.get(key, value) != value:
      raise errors.UserError(f'{where}: {key} is {config[key]!r}; of a {kind} only {value!r} is supported')
  fields = dict(DEFAULTS[kind])
  for ours, keys in KEYS[kind].items():
    keys = (keys,) if isinstance(keys, str) else keys
    if (value := next((config[key] for key in keys if config.get(key) is not None), None)) is not None:
      fields[ours] = value
  if fields.get('positions', 'rotary') == 'rotary':
    fields |= _rotation(config, where)
    if fields.get('head_dim') is None:
      fields.pop('head_dim', None)
    fields.pop('sliding_window', None)
    if (window := _window(config, kind, fields.get('layers'), where)) is not None:
      fields['sliding_window'] = window
  if kind in ('bloom', 'gpt2') and isinstance(fields.get('width'), int):
    fields.setdefault('feed_forward', 4 * fields['width'])
  if kind == 'opt' and not config.get('do_layer_norm_before', True):
    fields |= {'post_norm': True, 'opening_norm': False}
  if kind in ('roberta', 'xlm-roberta') and isinstance(fields['max_length'], int):
    fields['max_length'] -= families.FAMILIES[kind].skipped
  if not fields.get('causal', True):
    named = str(config.get('architectures') or 'MaskedLM')
    fields['head'] = 'MaskedLM' in named or 'PreTraining' in named
  activation = fields.get('activation', 'silu')
  if not isinstance(activation, str) or activation not in _ACTIVATIONS:
    raise errors.UserError(f'{where}: the activation is {activation!r}; there are {", ".join(_ACTIVATIONS)}')
  fields['activation'] = _ACTIVATIONS[activation]
  fields['dtype'] = str(config.get('dtype') or config.get('torch_dtype') or 'float32').removeprefix('torch.')
  return _checked(fields, kind, where)


def keys(model: model_config.TransformerConfig, kind: str) -> dict[str, Any]:
  """The keys of a `config.json` of `kind` with the values of a model; those of its rotation are not among them."""
  made = {}
  for ours, theirs in KEYS[kind].items():
    value = getattr(model, ours)
    if ours == 'activation':
      value = next(name for name, same in _ACTIVATIONS.items() if same == value)
    made.setdefault(theirs if isinstance(theirs, str) else theirs[0], value)
  return made


def _rotation(config: Mapping[str, Any], where: str) -> dict[str, Any]:
  """Our fields of the rotary positions."""
  stretched = config.get('rope_scaling') or {}
  if not isinstance(values := config.get('rope_parameters') or stretched, dict):
    raise errors.UserError(f'{where}: rope_parameters, or rope_scaling, is {values!r}')
  values = {'rope_theta': config.get('rope_theta', 10_000.0), **values}
  if nested := [key for key, value in values.items() if isinstance(value, dict)]:
    raise errors.UserError(f'{where}: the rotation of {nested[0]!r} is one of several, which is not supported')
  kind = values.get('rope_type', values.get('type', 'default'))
  if not isinstance(kind, str) or kind not in _ROTATIONS:
    raise errors.UserError(f'{where}: the rope type is {kind!r}; there are {", ".join(_ROTATIONS)}')
  if values.get('partial_rotary_factor', 1.0) != 1.0:
    raise errors.UserError(
        f'{where}: partial_rotary_factor is {values["partial_rotary_factor"]!r}; only 1.0 is supported')
  keys = {'rope_theta': 'rope_theta'}
  if kind != 'default':
    keys['rope_factor'] = 'factor'
  if kind == 'llama3':
    keys |= {'rope_low_factor': 'low_freq_factor', 'rope_high_factor': 'high_freq_factor',
             'rope_original_length': 'original_max_position_embeddings'}
  if missing := [key for key in keys.values() if not isinstance(values.get(key), (int, float))]:
    raise errors.UserError(f'{where}: the rotation of type {kind} lacks {", ".join(missing)}')
  if kind == 'llama3' and not values['low_freq_factor'] < values['high_freq_factor']:
    raise errors.UserError(f'{where}: the rotation of type llama3 needs high_freq_factor above low_freq_factor')
  scaling = 'none' if kind == 'default' else kind
  return {'rope_scaling': scaling, **{ours: values[theirs] for ours, theirs in keys.items()}}


def _window(config: Mapping[str, Any], kind: str, layers: Any, where: str) -> int | None:
  """The sliding window of all layers; raises `UserError` where only some have one."""
  if kind not in WINDOWS and not (kind in _SWITCHED and config.get('use_sliding_window', False)):
    return None
  types = config.get('layer_types')
  if types is None and kind not in WINDOWS and isinstance(layers, int):
    full = config.get('max_window_layers', 28)
    if type(full) is not int:
      raise errors.UserError(f'{where}: max_window_layers is {full!r}')
    full = min(full, layers)
    types = ['full_attention'] * full + ['sliding_attention'] * (layers - full)
  if types is not None and not (isinstance(types, list) and all(isinstance(each, str) for each in types)):
    raise errors.UserError(f'{where}: layer_types is {types!r}')
  kinds = set(types or ['sliding_attention'])
  if len(kinds) > 1:
    raise errors.UserError(f'{where}: some layers attend to a sliding window and some do not, which is not supported')
  return config.get('sliding_window', WINDOWS.get(kind, 4096)) if kinds == {'sliding_attention'} else None


def _checked(fields: dict[str, Any], kind: str, where: str) -> model_config.TransformerConfig:
  """The configuration; raises `UserError` for a value of a wrong type."""
  for name, value in fields.items():
    default = getattr(model_config.TransformerConfig, name, 0)
    wanted = type(default) if default is not None else int
    right = isinstance(value, (int, float) if wanted is float else wanted)
    right = right and isinstance(value, bool) == (wanted is bool) and (wanted is not float or 0 < value < _LARGEST)
    if not right or (wanted is int and not 0 <= value <= _MOST) or (name in _SIZES and value < 1):
      keys = KEYS[kind].get(name, name)
      raise errors.UserError(f'{where}: {keys if isinstance(keys, str) else keys[0]} is {value!r}')
    fields[name] = wanted(value)
  try:
    return model_config.TransformerConfig.from_dict(fields)
  except errors.UserError as error:
    raise errors.UserError(f'{where}: {error}') from None
