"""What each architecture calls its parts, as data: a new family is one more entry, and no code.

Names are templates: `{base}` is what all names of the model without its head begin with, `{i}` the number of a block.
Left stand the paths of our tree, of linears, embeddings and norms; their kernels and gains are called `weight` in the
files, their biases `bias`. What a file calls otherwise has a row of its own, such as `head/bias`.
"""

import types
from collections.abc import Mapping
from typing import NamedTuple

from jaxquant import errors


class Family(NamedTuple):
  """The names of an architecture.

  Attributes:
    bases: what may stand for `{base}`; the first is what we write.
    root: {path in our tree: name}, of what is not in a block.
    block: the same of a block, paths relative to it. `closing_norm` is the norm that ends a post-norm block, in our
      tree the first of the next block, and behind the last block `final_norm`.
    fused: `heads` or `parts` where one tensor holds queries, keys and values: side by side for each head, [heads, 3,
      head features], or [3, heads, head features]; its name is that of each of the three.
    transposed: whether the weights of linears are [out, in].
    skipped: rows of the position table that no position reads.
    heads: names of linears that transformers has and our tree has not where they share the embedding's kernel.
    copies: {tensor that a file may hold where they do: path of the array that it repeats}.
    ignored: regular expressions of tensors that are no parameters, or that our evaluation has no use for.
  """

  bases: tuple[str, ...]
  root: dict[str, str]
  block: dict[str, str]
  fused: str = ''
  transposed: bool = True
  skipped: int = 0
  heads: tuple[str, ...] = ('lm_head',)
  copies: Mapping[str, str] = types.MappingProxyType({'lm_head.weight': 'embedding/kernel'})
  ignored: tuple[str, ...] = ()


def _attention(prefix: str, *names: str) -> dict[str, str]:
  """Rows of the four linears of attention."""
  return {f'attention/{ours}': prefix + theirs for ours, theirs in zip('qkvo', names, strict=True)}


_LLAMA = Family(
    bases=('model.', ''),
    root={'embedding': '{base}embed_tokens', 'final_norm': '{base}norm', 'head': 'lm_head'},
    block={
        'attention_norm': '{base}layers.{i}.input_layernorm',
        **_attention('{base}layers.{i}.self_attn.', 'q_proj', 'k_proj', 'v_proj', 'o_proj'),
        'attention/q_norm': '{base}layers.{i}.self_attn.q_norm',
        'attention/k_norm': '{base}layers.{i}.self_attn.k_norm',
        'mlp_norm': '{base}layers.{i}.post_attention_layernorm',
        'mlp/gate': '{base}layers.{i}.mlp.gate_proj',
        'mlp/up': '{base}layers.{i}.mlp.up_proj',
        'mlp/down': '{base}layers.{i}.mlp.down_proj',
    },
    ignored=(r'.*rotary_emb\.inv_freq',))

_OPT = Family(
    bases=('model.decoder.', 'decoder.'),
    root={
        'embedding': '{base}embed_tokens', 'positions': '{base}embed_positions', 'final_norm': '{base}final_layer_norm',
        'project_in': '{base}project_in', 'project_out': '{base}project_out', 'head': 'lm_head',
    },
    block={
        'attention_norm': '{base}layers.{i}.self_attn_layer_norm',
        **_attention('{base}layers.{i}.self_attn.', 'q_proj', 'k_proj', 'v_proj', 'out_proj'),
        'mlp_norm': '{base}layers.{i}.final_layer_norm',
        'mlp/up': '{base}layers.{i}.fc1',
        'mlp/down': '{base}layers.{i}.fc2',
    },
    skipped=2)

_OPT_POST_NORM = _OPT._replace(
    root={ours: theirs for ours, theirs in _OPT.root.items() if ours != 'final_norm'},
    block={
        **{ours: theirs for ours, theirs in _OPT.block.items() if ours != 'attention_norm'},
        'mlp_norm': '{base}layers.{i}.self_attn_layer_norm',
        'closing_norm': '{base}layers.{i}.final_layer_norm',
    })

_BLOOM = Family(
    bases=('transformer.', ''),
    root={
        'embedding': '{base}word_embeddings', 'embedding_norm': '{base}word_embeddings_layernorm',
        'final_norm': '{base}ln_f', 'head': 'lm_head',
    },
    block={
        'attention_norm': '{base}h.{i}.input_layernorm',
        **_attention('{base}h.{i}.self_attention.', *['query_key_value'] * 3, 'dense'),
        'mlp_norm': '{base}h.{i}.post_attention_layernorm',
        'mlp/up': '{base}h.{i}.mlp.dense_h_to_4h',
        'mlp/down': '{base}h.{i}.mlp.dense_4h_to_h',
    },
    fused='heads')

_GPT2 = Family(
    bases=('transformer.', ''),
    root={'embedding': '{base}wte', 'positions': '{base}wpe', 'final_norm': '{base}ln_f', 'head': 'lm_head'},
    block={
        'attention_norm': '{base}h.{i}.ln_1',
        **_attention('{base}h.{i}.attn.', *['c_attn'] * 3, 'c_proj'),
        'mlp_norm': '{base}h.{i}.ln_2',
        'mlp/up': '{base}h.{i}.mlp.c_fc',
        'mlp/down': '{base}h.{i}.mlp.c_proj',
    },
    fused='parts', transposed=False, ignored=(r'.*attn\.(masked_)?bias',))

_BERT = Family(
    bases=('bert.', ''),
    root={
        'embedding': '{base}embeddings.word_embeddings', 'positions': '{base}embeddings.position_embeddings',
        'types': '{base}embeddings.token_type_embeddings', 'layers/0/attention_norm': '{base}embeddings.LayerNorm',
        'transform': 'cls.predictions.transform.dense', 'transform_norm': 'cls.predictions.transform.LayerNorm',
        'head/bias': 'cls.predictions.bias',
    },
    block={
        **_attention('{base}encoder.layer.{i}.attention.', 'self.query', 'self.key', 'self.value', 'output.dense'),
        'mlp_norm': '{base}encoder.layer.{i}.attention.output.LayerNorm',
        'mlp/up': '{base}encoder.layer.{i}.intermediate.dense',
        'mlp/down': '{base}encoder.layer.{i}.output.dense',
        'closing_norm': '{base}encoder.layer.{i}.output.LayerNorm',
    },
    heads=('cls.predictions.decoder', 'pooler.dense'),
    copies={'cls.predictions.decoder.weight': 'embedding/kernel', 'cls.predictions.decoder.bias': 'head/bias'},
    ignored=(r'.*pooler\.dense\..*', r'.*position_ids', r'cls\.seq_relationship\..*'))

_ROBERTA = _BERT._replace(
    bases=('roberta.', ''),
    root={
        **_BERT.root, 'transform': 'lm_head.dense', 'transform_norm': 'lm_head.layer_norm',
        'head/bias': 'lm_head.bias',
    },
    skipped=2, heads=('lm_head.decoder', 'pooler.dense'),
    copies={'lm_head.decoder.weight': 'embedding/kernel', 'lm_head.decoder.bias': 'head/bias'},
    ignored=(r'.*pooler\.dense\..*', r'.*position_ids'))

FAMILIES = {
    'llama': _LLAMA, 'mistral': _LLAMA, 'qwen2': _LLAMA, 'qwen3': _LLAMA, 'opt': _OPT, 'bloom': _BLOOM, 'gpt2': _GPT2,
    'bert': _BERT, 'roberta': _ROBERTA, 'xlm-roberta': _ROBERTA,
}


def find(config: dict) -> Family:
  """The names of the architecture of a `config.json`; raises `UserError` for one that is not known."""
  kind = config.get('model_type')
  if not isinstance(kind, str) or kind not in FAMILIES:
    raise errors.UserError(f'the architecture is {kind!r}; there are {", ".join(FAMILIES)}')
  return _OPT_POST_NORM if kind == 'opt' and not config.get('do_layer_norm_before', True) else FAMILIES[kind]
