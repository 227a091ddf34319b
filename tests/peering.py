"""Tiny random models of transformers, as their users save them; tests that need it are skipped where it is missing."""

import functools
import importlib.util
import json
import os
import pathlib
import shutil
import unittest
from typing import Any

from absl.testing import absltest
import numpy as np

_PEERS = ('torch', 'transformers', 'compressed_tensors')
_MISSING = [name for name in _PEERS if importlib.util.find_spec(name) is None]
needed = unittest.skipIf(_MISSING, f'{", ".join(_MISSING)} not installed; the extra [peers] has it')

_VOCABULARY = 320
_SIZES = dict(
    vocab_size=_VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    max_position_embeddings=64)
_GROUPED = dict(_SIZES, num_key_value_heads=2)
_OPT = dict(vocab_size=_VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64,
            max_position_embeddings=64)
_LLAMA3 = dict(rope_type='llama3', rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
               original_max_position_embeddings=32)

# Name of a family: class of transformers, and its configuration.
FAMILIES = {
    'llama': ('LlamaForCausalLM', _SIZES),
    'llama2': ('LlamaForCausalLM', dict(_GROUPED, rms_norm_eps=1e-5)),
    'llama3': ('LlamaForCausalLM', dict(_GROUPED, rope_parameters=_LLAMA3, tie_word_embeddings=True)),
    'llama, biases': ('LlamaForCausalLM', dict(_GROUPED, attention_bias=True, mlp_bias=True)),
    'llama, linear': ('LlamaForCausalLM', dict(
        _GROUPED, rope_parameters=dict(rope_type='linear', rope_theta=100.0, factor=2.0))),
    # As wide as the packers of GPTQModel ask for.
    'wide llama': ('LlamaForCausalLM', dict(_SIZES, hidden_size=128, intermediate_size=256)),
    'mistral': ('MistralForCausalLM', dict(_GROUPED, sliding_window=None)),
    'mistral, window': ('MistralForCausalLM', dict(_GROUPED, sliding_window=5)),
    'qwen2': ('Qwen2ForCausalLM', dict(_GROUPED, tie_word_embeddings=True)),
    'qwen3': ('Qwen3ForCausalLM', dict(_GROUPED, head_dim=16)),
    'opt': ('OPTForCausalLM', dict(_OPT, word_embed_proj_dim=32)),
    'opt, post-norm': ('OPTForCausalLM', dict(_OPT, word_embed_proj_dim=16, do_layer_norm_before=False)),
    'bloom': ('BloomForCausalLM', dict(vocab_size=_VOCABULARY, hidden_size=32, n_layer=2, n_head=4)),
    'bloom, six heads': ('BloomForCausalLM', dict(vocab_size=_VOCABULARY, hidden_size=48, n_layer=2, n_head=6)),
    'gpt2': ('GPT2LMHeadModel', dict(vocab_size=_VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
    'bert': ('BertForMaskedLM', _SIZES),
    'bert, no head': ('BertModel', _SIZES),
    'roberta': ('RobertaForMaskedLM', dict(
        _SIZES, max_position_embeddings=66, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1)),
    'xlm-roberta': ('XLMRobertaForMaskedLM', dict(
        _SIZES, max_position_embeddings=66, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1)),
}

# Those that compressed-tensors can express, which knows no Conv1D as GPT-2 has them, and no model without a head.
EXPORTED = (
    'llama', 'llama2', 'llama3', 'llama, biases', 'mistral', 'mistral, window', 'qwen2', 'qwen3', 'opt',
    'opt, post-norm', 'bloom', 'bert', 'roberta', 'xlm-roberta')


@functools.cache
def libraries() -> tuple[Any, Any]:
  """(torch, transformers), which say nothing of their progress."""
  os.environ['TRANSFORMERS_VERBOSITY'] = 'error'
  torch, transformers = importlib.import_module('torch'), importlib.import_module('transformers')
  transformers.utils.logging.disable_progress_bar()
  torch.set_num_threads(1)
  return torch, transformers


@functools.cache
def saved(family: str, **options: Any) -> pathlib.Path:
  """The directory of a model of `family`, every parameter noise, biases and gains included; not to be changed.

  Args:
    family: one of `FAMILIES`.
    **options: of `save_pretrained`.
  """
  torch, transformers = libraries()
  name, values = FAMILIES[family]
  torch.manual_seed(0)
  kind = getattr(transformers, name)
  model = kind(kind.config_class(**values))
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  name = ''.join(filter(str.isalnum, f'{family}{options}'))
  folder = pathlib.Path(absltest.get_default_test_tmpdir()) / 'peers' / name
  shutil.rmtree(folder, ignore_errors=True)
  model.save_pretrained(folder, **options)
  return folder


def config(folder: pathlib.Path, **changes: Any) -> None:
  """Changes keys of the `config.json` in a folder; None removes one."""
  path = folder / 'config.json'
  values = {**json.loads(path.read_text()), **changes}
  path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def tokens(rows: int = 2, length: int = 23) -> np.ndarray:
  """Token ids, int32 [rows, length], none of them special."""
  return np.random.default_rng(0).integers(5, _VOCABULARY, (rows, length)).astype(np.int32)


def linears(folder: pathlib.Path, ids: np.ndarray, names) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """What the modules called `names` read and put out where transformers evaluates `ids`, by name."""
  torch, _ = libraries()
  model, found = _load(folder), {}
  for name in names:
    model.get_submodule(name).register_forward_hook(
        lambda module, read, made, name=name: found.update({name: (read[0].numpy(), made.numpy())}))
  with torch.no_grad():
    model(torch.tensor(ids, dtype=torch.long))
  return found


def logits(folder: pathlib.Path, ids: np.ndarray, **options: Any) -> np.ndarray:
  """What transformers makes of `ids`, float32 [rows, length, vocabulary]: logits, or hidden states without a head.

  Args:
    folder: of the model.
    ids: as `tokens` makes them.
    **options: of `from_pretrained`.
  """
  torch, _ = libraries()
  model = _load(folder, **options)
  with torch.no_grad():
    made = model(torch.tensor(ids, dtype=torch.long))
  return (made.logits if 'logits' in made else made.last_hidden_state).float().numpy()


def _load(folder, **options):
  """The model in a folder; none of its tensors may be missing or left over."""
  _, transformers = libraries()
  kind = getattr(transformers, json.loads((folder / 'config.json').read_text())['architectures'][0])
  model, report = kind.from_pretrained(folder, output_loading_info=True, **options)
  wrong = {what: keys for what, keys in report.items() if keys}
  if wrong:
    raise AssertionError(f'{folder} does not load cleanly: {wrong}')
  return model.eval()
