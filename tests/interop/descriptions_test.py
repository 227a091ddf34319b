"""A model of ours, written in the words of others and read again, is the same model; what has no words is refused."""

import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from jaxquant import errors
from jaxquant.data import tokenizers
from jaxquant.interop import descriptions
from jaxquant.interop import export
from jaxquant.interop import source
from jaxquant.interop import tensor_file
from jaxquant.interop import writing
from jaxquant.models import config as model_config
from tests import exporting
from tests import model_directories
from tests import networks

_LAYER = dict(norm='layer', gated=False, bias=True, tied=True)
# Of each architecture, ours in the words of configs/.
_MODELS = {
    'LlamaForCausalLM': dict(kv_heads=2, rope_theta=500.0),
    'LlamaForCausalLM, llama3': dict(tied=True, rope_scaling='llama3', rope_factor=8.0, rope_original_length=16),
    'LlamaForCausalLM, linear': dict(rope_scaling='linear', rope_factor=2.0, norm_epsilon=1e-6),
    'LlamaForCausalLM, biases': dict(bias=True, remat=True, head_dim=16),
    'MistralForCausalLM': dict(sliding_window=5),
    'Qwen2ForCausalLM': dict(qkv_bias=True, tied=True),
    'Qwen2ForCausalLM, window': dict(qkv_bias=True, sliding_window=5),
    'Qwen3ForCausalLM': dict(head_norm=True, head_dim=16),
    'OPTForCausalLM': dict(_LAYER, positions='learned', activation='relu'),
    'OPTForCausalLM, gelu': dict(_LAYER, positions='learned', activation='gelu_tanh'),
    'OPTForCausalLM, post-norm': dict(
        _LAYER, positions='learned', activation='relu', post_norm=True, opening_norm=False, embedding_width=16),
    'GPT2LMHeadModel': dict(_LAYER, positions='learned', activation='gelu_tanh', norm_epsilon=1e-6),
    'BloomForCausalLM': dict(
        _LAYER, positions='alibi', activation='gelu_tanh', embedding_norm=True, feed_forward=128),
    'BertForMaskedLM': dict(
        _LAYER, positions='learned', activation='gelu', causal=False, post_norm=True, token_types=2),
}
_SIZES = dict(vocabulary=300, width=32, layers=2, heads=4, feed_forward=64, max_length=32, dtype='float32')


class DescriptionsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  @parameterized.parameters(*_MODELS)
  def test_read_again_it_is_the_same_model(self, name):
    model = model_config.TransformerConfig(**_SIZES | _MODELS[name])
    params, tokenizer = model_directories.noise(model), exporting.tokenizer(model.text_vocabulary)
    described = descriptions.Description(model, tokenizer.backend, tokenizer.end_of_text)
    read = source.DirectorySource(writing.write(self.folder / 'exported', params, described, 'float'))
    self.assertEqual(read.directory.config['architectures'], [name.partition(',')[0]])
    self.assertEqual(read.config.mask_token, model.mask_token)
    whole = read.whole()
    jax.tree.map(np.testing.assert_array_equal, whole, params)
    got, want = (networks.evaluator(config, jit=networks.quick_jit)(tree, networks.tokens(2)) for config, tree in (
        (read.config, whole), (model, params)))
    np.testing.assert_array_equal(got, want)

  @parameterized.parameters(*export.CODED)
  def test_quantized(self, kind):
    model = model_config.TransformerConfig(**_SIZES)
    params, tokenizer = exporting.rounded(model, model_directories.noise(model), 'int4'), exporting.tokenizer(300)
    described = descriptions.Description(model, tokenizer.backend, tokenizer.end_of_text)
    read = source.DirectorySource(writing.write(self.folder / 'exported', params, described, kind))
    evaluate = networks.evaluator(model, jit=networks.quick_jit)
    got, want = (evaluate(tree, networks.tokens(2)) for tree in (read.whole(), params))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 if kind == 'compressed-tensors' else 1e-2)

  @parameterized.parameters('float16', 'bfloat16')
  def test_floats_of_16_bits(self, dtype):
    model = model_config.TransformerConfig(**_SIZES | dict(dtype='bfloat16'))
    described = descriptions.Description(model, exporting.tokenizer(300).backend)
    folder = writing.write(self.folder / 'exported', model_directories.noise(model), described, 'float',
                           dtype=None if dtype == 'bfloat16' else dtype)
    tensors = tensor_file.TensorFile(folder / 'model.safetensors').tensors
    self.assertEqual({tensor.dtype.name for tensor in tensors.values()}, {dtype})
    config = json.loads((folder / 'config.json').read_text())
    self.assertEqual((config['torch_dtype'], config['eos_token_id']), (dtype, None))
    self.assertNotIn('quantization_config', config)

  def test_files_of_the_tokenizer(self):
    model, tokenizer = model_config.TransformerConfig(**_SIZES), exporting.tokenizer(300)
    descriptions.Description(model, tokenizer.backend, tokenizer.end_of_text).carry(self.folder)
    text = 'A <|endoftext|> in the text,\n and more of it.'
    np.testing.assert_array_equal(
        tokenizers.Tokenizer.load(self.folder).encode_documents([text]), tokenizer.encode_documents([text]))
    read = lambda name: json.loads((self.folder / name).read_text())
    self.assertEqual(read('tokenizer_config.json')['eos_token'], '<|endoftext|>')
    self.assertEqual(read('generation_config.json')['eos_token_id'], tokenizer.end_of_text)

  @parameterized.parameters((300, '[MASK]'), (299, None))
  def test_an_encoder_names_its_mask_if_that_is_the_token_behind_all_others(self, vocabulary, mask):
    model = model_config.TransformerConfig(**_SIZES | _MODELS['BertForMaskedLM'])
    tokenizer = exporting.tokenizer(vocabulary - 1)
    descriptions.Description(model, tokenizer.backend, tokenizer.end_of_text).carry(self.folder)
    self.assertEqual(json.loads((self.folder / 'tokenizer_config.json').read_text()).get('mask_token'), mask)
    read = tokenizers.Tokenizer.load(self.folder)
    self.assertEqual(read.backend.token_to_id('[MASK]'), model.mask_token if mask else None)
    self.assertNotIn('[MASK]', tokenizer.backend.get_vocab())
    self.assertFalse((self.folder / 'generation_config.json').exists())

  @parameterized.named_parameters(
      ('norm', dict(norm='layer'), "LlamaForCausalLM, but for model.norm='layer'"),
      ('gate', dict(gated=False), 'LlamaForCausalLM, but for model.gated=False'),
      ('biases', dict(mlp_bias=True, qkv_bias=True), 'but for model.'),
      ('window', dict(_LAYER, positions='learned', activation='relu', sliding_window=4), 'model.sliding_window=4'),
      ('types', _MODELS['BertForMaskedLM'] | dict(token_types=0), 'BertForMaskedLM, but for model.token_types=0'),
      ('pre_norm', _MODELS['BertForMaskedLM'] | dict(post_norm=False), 'model.post_norm=False'))
  def test_refused(self, changes, message):
    model = model_config.TransformerConfig(**_SIZES | changes)
    with self.assertRaisesRegex(errors.UserError, message):
      descriptions.Description(model, exporting.tokenizer(300).backend)


if __name__ == '__main__':
  absltest.main()
