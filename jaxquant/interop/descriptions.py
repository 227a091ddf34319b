"""A model that was trained here, as others describe theirs: `config.json`, the tokenizer's files, how it generates.

Which architecture it is follows from reading: a description is made for each family in turn, and the first one that
reads as the very model is taken, so that nothing is described that would be evaluated otherwise.
"""

import pathlib
from typing import Any

import tokenizers

from jaxquant import errors
from jaxquant.interop import configs
from jaxquant.interop import directory
from jaxquant.models import config as model_config

# Families in the order in which they are tried, with their classes in transformers. OPT before GPT-2: its linears are
# of the kind that every format knows.
_CLASSES = {
    'llama': 'LlamaForCausalLM', 'mistral': 'MistralForCausalLM', 'qwen2': 'Qwen2ForCausalLM',
    'qwen3': 'Qwen3ForCausalLM', 'opt': 'OPTForCausalLM', 'gpt2': 'GPT2LMHeadModel', 'bloom': 'BloomForCausalLM',
    'bert': 'BertForMaskedLM',
}
# What does not change what is evaluated, but how; what stands for others; the token that hides others, which is the
# tokenizer's to name.
_ASIDE = ('remat', 'attention_backend', 'bias', 'mask_token')
_ROTARY = ('llama', 'mistral', 'qwen2', 'qwen3')
_MASK = '[MASK]'


class Description:
  """What stands in a directory of others beside the tensors.

  Attributes:
    config: the values of `config.json`.
  """

  def __init__(
      self, model: model_config.TransformerConfig, tokenizer: tokenizers.Tokenizer, end_of_text: int | None = None):
    """Finds the architecture.

    Args:
      model: the architecture.
      tokenizer: its tokenizer.
      end_of_text: the token that ends a document.

    Raises:
      UserError: transformers has no architecture, of those that we read, that evaluates what this model does.
    """
    self._model, self._tokenizer, self._end = model, tokenizer, end_of_text
    self.config = {
        **_describe(model), 'bos_token_id': end_of_text, 'eos_token_id': end_of_text, 'pad_token_id': None}

  def carry(self, folder: pathlib.Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json` and, for a decoder, `generation_config.json`."""
    tokenizer, named = tokenizers.Tokenizer.from_str(self._tokenizer.to_str()), {}
    if self._end is not None:
      # A document follows the end of the one before it, as GPT-2 has it.
      end = tokenizer.id_to_token(self._end)
      named |= {'bos_token': end, 'eos_token': end}
    if not self._model.causal and tokenizer.get_vocab_size() == self._model.mask_token:
      tokenizer.add_special_tokens([_MASK])
      named['mask_token'] = _MASK
    tokenizer.save(str(folder / 'tokenizer.json'))
    directory.write_json(folder / 'tokenizer_config.json', {
        'tokenizer_class': 'PreTrainedTokenizerFast', 'model_max_length': self._model.max_length,
        'clean_up_tokenization_spaces': False, **named})
    if self._model.causal:
      ends = {} if self._end is None else {'bos_token_id': self._end, 'eos_token_id': self._end}
      directory.write_json(folder / 'generation_config.json', {'do_sample': False, **ends})


def _describe(model: model_config.TransformerConfig) -> dict[str, Any]:
  """The `config.json` that reads as `model`; raises `UserError` naming what the nearest one has otherwise."""
  wrong = {}
  for kind in _CLASSES:
    made = _made(model, kind)
    try:
      differences = _differences(model, configs.read(made))
    except errors.UserError as error:
      differences = [str(error)]
    if not differences:
      return made
    wrong[kind] = differences
  nearest = min(wrong, key=lambda kind: len(wrong[kind]))
  raise errors.UserError(
      f'no architecture of transformers that we write is this model; the nearest is {_CLASSES[nearest]}, but for '
      + ', '.join(wrong[nearest]))


def _differences(model: model_config.TransformerConfig, read: model_config.TransformerConfig) -> list[str]:
  """The fields in which what was read is another model."""
  ours, theirs = model.to_dict(), read.to_dict()
  rotary = model.positions == read.positions == 'rotary'
  unused = {*_ASIDE, *(key for key in ours if key.startswith('rope_') and not _rotates(model, key, rotary))}
  found = [f'model.{key}={value!r}' for key, value in ours.items() if key not in unused and theirs[key] != value]
  # Files of a BERT always hold a table of types.
  return found + (['model.token_types=0'] if not model.causal and not model.token_types else [])


def _rotates(model: model_config.TransformerConfig, key: str, rotary: bool) -> bool:
  """Whether a field of the rotation takes part in it."""
  used = {'none': ('rope_scaling', 'rope_theta'), 'linear': ('rope_scaling', 'rope_theta', 'rope_factor')}
  return rotary and (key in used.get(model.rope_scaling, (key,)))


def _made(model: model_config.TransformerConfig, kind: str) -> dict[str, Any]:
  """The model as a `config.json` of `kind`, whether that says all of it or not."""
  made = {'architectures': [_CLASSES[kind]], 'model_type': kind, 'torch_dtype': model.dtype}
  made |= configs.keys(model, kind)
  if kind in _ROTARY:
    made |= {'rope_theta': model.rope_theta, 'rope_scaling': None}
    if model.rope_scaling != 'none':
      made['rope_scaling'] = {'rope_type': model.rope_scaling, 'factor': model.rope_factor}
    if model.rope_scaling == 'llama3':
      made['rope_scaling'] |= {
          'low_freq_factor': model.rope_low_factor, 'high_freq_factor': model.rope_high_factor,
          'original_max_position_embeddings': model.rope_original_length}
  if kind in ('qwen2', 'qwen3'):
    made |= {'use_sliding_window': model.sliding_window is not None, 'max_window_layers': 0}
  if kind == 'opt':
    made['do_layer_norm_before'] = not model.post_norm
  return made
