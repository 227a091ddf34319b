"""Hugging Face directories for tests, written without torch: tiny models of the families, noise in every parameter."""

import json
import pathlib
from typing import Any

import jax
import numpy as np
import tokenizers

from jaxquant.interop import configs
from jaxquant.interop import families
from jaxquant.interop import names
from jaxquant.interop import tensor_file
from jaxquant.models import config as model_config
from jaxquant.models import validate
from jaxquant.numerics import trees

_LLAMA = dict(
    vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=64, max_position_embeddings=32, rms_norm_eps=1e-5, rope_theta=100.0, torch_dtype='float32')
_BERT = dict(vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
             max_position_embeddings=32, type_vocab_size=2, layer_norm_eps=1e-12, dtype='float32')
CONFIGS = {
    'llama': dict(_LLAMA, model_type='llama', architectures=['LlamaForCausalLM']),
    'mistral': dict(_LLAMA, model_type='mistral', architectures=['MistralForCausalLM'], sliding_window=8),
    'qwen2': dict(_LLAMA, model_type='qwen2', architectures=['Qwen2ForCausalLM'], tie_word_embeddings=True),
    'qwen3': dict(_LLAMA, model_type='qwen3', architectures=['Qwen3ForCausalLM'], head_dim=16),
    'opt': dict(
        model_type='opt', architectures=['OPTForCausalLM'], vocab_size=300, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=4, ffn_dim=64, max_position_embeddings=32, word_embed_proj_dim=32, dtype='float32'),
    'bloom': dict(model_type='bloom', architectures=['BloomForCausalLM'], vocab_size=300, hidden_size=32, n_layer=2,
                  n_head=4, seq_length=32, dtype='float32'),
    'gpt2': dict(model_type='gpt2', architectures=['GPT2LMHeadModel'], vocab_size=300, n_embd=32, n_layer=2, n_head=4,
                 n_positions=32, dtype='float32'),
    'bert': dict(_BERT, model_type='bert', architectures=['BertForMaskedLM']),
    'roberta': dict(_BERT, model_type='roberta', architectures=['RobertaForMaskedLM'], max_position_embeddings=34),
}
CONFIGS['bert, no head'] = dict(CONFIGS['bert'], architectures=['BertModel'])
CONFIGS['opt, post-norm'] = dict(CONFIGS['opt'], do_layer_norm_before=False, word_embed_proj_dim=16)


def params(config: dict[str, Any]) -> dict:
  """The float tree of a `config.json`, as `noise` makes it."""
  return noise(configs.read(config))


def noise(model: model_config.TransformerConfig) -> dict:
  """A float tree of a model: noise, and one for gains."""
  rng = np.random.default_rng(0)
  value = lambda path, leaf: (path[-1].key == 'scale') + 0.2 * rng.normal(size=leaf.shape)
  return jax.tree_util.tree_map_with_path(
      lambda path, leaf: np.asarray(value(path, leaf), np.float32), validate.abstract_params(model))


def tensors(config: dict[str, Any]) -> dict[str, np.ndarray]:
  """The tensors of `params`, as a file holds them."""
  arrays = trees.arrays(params(config))
  groups: dict[str, list] = {}
  for path, entry in names.Names(families.find(config), configs.read(config)).entries.items():
    groups.setdefault(entry.tensor, []).append((entry.layout.part, path, entry.layout))
  return {tensor: np.ascontiguousarray(parts[0][2].give(*(arrays[path] for _, path, _ in sorted(parts))))
          for tensor, parts in groups.items()}


def write(folder: str | pathlib.Path, family: str = 'llama', shards: int = 1, **changes: Any) -> pathlib.Path:
  """Writes a model of `family` to `folder`, in `shards` files; `changes` are keys of its `config.json`."""
  folder, config = pathlib.Path(folder), {**CONFIGS[family], **changes}
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(config))
  tokenizer().save(str(folder / 'tokenizer.json'))
  arrays = tensors(CONFIGS[family])
  if shards == 1:
    tensor_file.write(folder / 'model.safetensors', arrays, {'format': 'pt'})
    return folder
  index = {}
  for i in range(shards):
    name = f'model-{i + 1:05}-of-{shards:05}.safetensors'
    part = {tensor: arrays[tensor] for tensor in sorted(arrays)[i::shards]}
    tensor_file.write(folder / name, part, {'format': 'pt'})
    index.update(dict.fromkeys(part, name))
  (folder / 'model.safetensors.index.json').write_text(json.dumps({'metadata': {}, 'weight_map': index}))
  return folder


def tokenizer() -> tokenizers.Tokenizer:
  """A tokenizer of bytes, whose post-processor begins every text with <s>."""
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  made = tokenizers.Tokenizer(tokenizers.models.BPE(
      {token: i for i, token in enumerate(['<s>', '</s>', '<mask>', *alphabet])}, []))
  made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = tokenizers.decoders.ByteLevel()
  made.add_special_tokens(['<s>', '</s>', '<mask>'])
  made.post_processor = tokenizers.processors.TemplateProcessing(single='<s> $A', special_tokens=[('<s>', 0)])
  return made
