"""What was trained here, transformers loads as an architecture of its own, and evaluates and tokenizes as we do."""

import pathlib
from pydoc_data import topics

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from jaxquant.data import tokenizers
from jaxquant.interop import descriptions
from jaxquant.interop import writing
from jaxquant.models import config as model_config
from jaxquant.models import staging
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from tests import exporting
from tests import model_directories
from tests import networks
from tests import peering

_SIZES = dict(vocabulary=320, width=32, layers=2, heads=4, feed_forward=64, max_length=64, dtype='float32')
_LAYER = dict(norm='layer', gated=False, bias=True, tied=True)
_OPT = dict(_LAYER, positions='learned', activation='relu')
_MODELS = {
    'quickstart': {},
    'llama': dict(kv_heads=2, rope_theta=500.0, tied=True, norm_epsilon=1e-6),
    'llama3': dict(rope_scaling='llama3', rope_theta=500.0, rope_factor=8.0, rope_original_length=32),
    'llama, linear': dict(rope_scaling='linear', rope_factor=2.0, bias=True),
    'mistral': dict(sliding_window=5),
    'qwen2': dict(qkv_bias=True, kv_heads=2),
    'qwen2, window': dict(qkv_bias=True, sliding_window=5),
    'qwen3': dict(head_norm=True, head_dim=16),
    'opt': _OPT,
    'opt, gelu': dict(_OPT, activation='gelu_tanh'),
    'opt, post-norm': dict(_OPT, post_norm=True, opening_norm=False, embedding_width=16),
    'gpt2': dict(_OPT, activation='gelu_tanh', norm_epsilon=1e-6),
    'bloom': dict(_LAYER, positions='alibi', activation='gelu_tanh', embedding_norm=True, feed_forward=128),
    'bert': dict(_OPT, activation='gelu', causal=False, post_norm=True, token_types=2),
}


@peering.needed
class OwnExportsTest(parameterized.TestCase):

  def _write(self, name, change=lambda model, params: params, kind='float'):
    """(the model, its tree, its tokenizer, the directory that it is exported to)."""
    model = model_config.TransformerConfig(**_SIZES | _MODELS[name])
    params = change(model, model_directories.noise(model))
    tokenizer = exporting.tokenizer(model.text_vocabulary)
    described = descriptions.Description(model, tokenizer.backend, tokenizer.end_of_text)
    folder = pathlib.Path(self.create_tempdir().full_path) / 'exported'
    return model, params, tokenizer, writing.write(folder, params, described, kind)

  def _logits(self, model, params):
    with jax.default_matmul_precision('highest'):
      return np.asarray(networks.evaluator(model, jit=networks.quick_jit)(params, peering.tokens()))

  @parameterized.parameters(*_MODELS)
  def test_logits(self, name):
    model, params, _, folder = self._write(name)
    want, got = self._logits(model, params), peering.logits(folder, peering.tokens())
    self.assertGreater(np.abs(want).max(), 0.5)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)

  @parameterized.parameters('quickstart', 'opt', 'gpt2', 'bert')
  def test_tokens(self, name):
    _, _, tokenizer, folder = self._write(name)
    _, transformers = peering.libraries()
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    text = topics.topics['lambda'] + ' déjà  vu\t\n'
    np.testing.assert_array_equal(theirs(text)['input_ids'], tokenizer.encode_text(text))
    self.assertEqual(theirs.decode(theirs(text)['input_ids']), text)
    self.assertEqual(theirs.eos_token_id, tokenizer.end_of_text)
    self.assertEqual(tokenizers.Tokenizer.load(folder).end_of_text, tokenizer.end_of_text)
    self.assertEqual(theirs.mask_token_id, 319 if name == 'bert' else None)

  def test_generation_ends_with_the_text(self):
    _, _, tokenizer, folder = self._write('quickstart')
    torch, transformers = peering.libraries()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    self.assertEqual(model.generation_config.eos_token_id, tokenizer.end_of_text)
    made = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4)
    self.assertEqual(made.shape[0], 1)
    self.assertGreater(made.shape[1], 3)

  @parameterized.parameters('quickstart', 'opt', 'bert')
  def test_4_bit_weights(self, name):
    model, params, _, folder = self._write(
        name, lambda model, params: exporting.rounded(model, params, 'int4'), 'compressed-tensors')
    want, got = self._logits(model, params), peering.logits(folder, peering.tokens())
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * np.abs(want).max())

  @parameterized.product(weights=['int4', 'int8'], quantizer=[
      quantizers.ClipQuantizer(np.float32(-1.7), np.float32(2.3), 4, align_zero=True),
      quantizers.ClipQuantizer(np.float32(-1.7), np.float32(2.3), 8, align_zero=True),
      quantizers.StepQuantizer(np.float32(0.05), 8)])
  def test_static_ranges(self, weights, quantizer):
    def change(model, params):
      params = exporting.rounded(model, params, weights, None if weights == 'int8' else 16)
      for i, site in enumerate(site.name for site in staging.model_sites(model) if site.name.startswith('layers/')):
        scaled = jax.tree.map(lambda end: np.float32(end * (1 + i / 8)), quantizer)
        params = trees.put(params, f'{site}/quantizer', scaled)
      return params

    model, params, _, folder = self._write('quickstart', change, 'compressed-tensors')
    want, got = self._logits(model, params), peering.logits(folder, peering.tokens())
    unranged = self._logits(model, exporting.rounded(
        model, model_directories.noise(model), weights, None if weights == 'int8' else 16))
    self.assertGreater(np.abs(want - unranged).max(), 1e-3 * np.abs(want).max())
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


if __name__ == '__main__':
  absltest.main()
