"""config.json: both forms of the rotation, what is left out, and what is refused in one line."""

from absl.testing import absltest
from absl.testing import parameterized

from jaxquant import errors
from jaxquant.interop import configs
from tests import model_directories

_LLAMA3 = dict(rope_type='llama3', factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
               original_max_position_embeddings=16)


def _config(family, **changes):
  values = {**model_directories.CONFIGS[family], **changes}
  return {key: value for key, value in values.items() if value != 'left out'}


class ConfigsTest(parameterized.TestCase):

  @parameterized.parameters(
      dict(rope_theta=7.0), dict(rope_theta='left out', rope_parameters={'rope_theta': 7.0, 'rope_type': 'default'}))
  def test_rotation_of_transformers_4_and_5(self, **changes):
    config = configs.read(_config('llama', **changes))
    self.assertEqual((config.rope_theta, config.rope_scaling), (7.0, 'none'))

  @parameterized.parameters(
      dict(rope_scaling=_LLAMA3), dict(rope_scaling={'type': 'llama3', **_LLAMA3}),
      dict(rope_parameters={**_LLAMA3, 'rope_theta': 100.0}, rope_theta='left out'))
  def test_stretched_rotation(self, **changes):
    config = configs.read(_config('llama', **changes))
    self.assertEqual(
        (config.rope_theta, config.rope_scaling, config.rope_factor, config.rope_low_factor, config.rope_high_factor,
         config.rope_original_length), (100.0, 'llama3', 8.0, 1.0, 4.0, 16))

  @parameterized.parameters(('dtype', 'bfloat16'), ('torch_dtype', 'torch.bfloat16'))
  def test_dtype_of_transformers_4_and_5(self, key, value):
    config = configs.read(_config('llama', **{'torch_dtype': 'left out', key: value}))
    self.assertEqual(config.dtype, 'bfloat16')

  def test_heads_are_sized_by_the_width_where_nothing_says_otherwise(self):
    self.assertEqual(configs.read(_config('llama')).head_dim, 8)
    self.assertEqual(configs.read(_config('llama', head_dim=None)).head_dim, 8)
    self.assertEqual(configs.read(_config('qwen3')).head_dim, 16)
    self.assertEqual(configs.read(_config('qwen3', head_dim='left out')).head_dim, 128)

  def test_windows(self):
    self.assertEqual(configs.read(_config('mistral')).sliding_window, 8)
    self.assertIsNone(configs.read(_config('mistral', sliding_window=None)).sliding_window)
    self.assertIsNone(configs.read(_config('qwen2', sliding_window=8)).sliding_window)
    every = dict(sliding_window=8, use_sliding_window=True)
    self.assertEqual(configs.read(_config('qwen2', **every, max_window_layers=0)).sliding_window, 8)
    self.assertEqual(configs.read(_config('qwen2', **every, layer_types=['sliding_attention'] * 2)).sliding_window, 8)

  def test_an_encoder_without_a_head(self):
    self.assertTrue(configs.read(_config('bert')).head)
    self.assertFalse(configs.read(_config('bert', architectures=['BertModel'])).head)

  @parameterized.named_parameters(
      ('architecture', 'llama', {'model_type': 'mamba'}, ["'mamba'", 'llama', 'bert']),
      ('no_architecture', 'llama', {'model_type': 'left out'}, ['architecture is None']),
      ('rope_type', 'llama', {'rope_scaling': {'rope_type': 'yarn', 'factor': 2.0}}, ["'yarn'", 'linear, llama3']),
      ('rope_lacks', 'llama', {'rope_scaling': {'rope_type': 'llama3', 'factor': 2.0}}, ['lacks low_freq_factor']),
      ('rope_word', 'llama', {'rope_parameters': 'long'}, ['rope_parameters']),
      ('partial', 'qwen2', {'rope_parameters': {'rope_theta': 1.0, 'partial_rotary_factor': 0.5}}, ['0.5']),
      ('rope_by_layer', 'qwen3', {'rope_parameters': {'full_attention': {'rope_theta': 1.0}}}, ["'full_attention'"]),
      ('padding', 'roberta', {'pad_token_id': 0}, ['pad_token_id is 0', '1']),
      ('windows', 'qwen2', {'use_sliding_window': True, 'max_window_layers': 1}, ['some layers']),
      ('activation', 'llama', {'hidden_act': 'mish'}, ["'mish'", 'silu']),
      ('activation_kind', 'llama', {'hidden_act': ['silu']}, ['activation']),
      ('word', 'llama', {'hidden_size': 'large'}, ["hidden_size is 'large'"]),
      ('zero', 'llama', {'num_hidden_layers': 0}, ['num_hidden_layers is 0']),
      ('enormous', 'llama', {'vocab_size': 2**40}, ['vocab_size']),
      ('boolean', 'llama', {'tie_word_embeddings': 1}, ['tie_word_embeddings is 1']),
      ('lacks', 'llama', {'hidden_size': 'left out'}, ['model.width']),
      ('heads', 'llama', {'num_attention_heads': 5}, ['model.width 32', 'model.heads 5']),
      ('dtype', 'llama', {'torch_dtype': 'float8'}, ['float8']),
      ('residual', 'bloom', {'apply_residual_connection_post_layernorm': True}, ['apply_residual']),
      ('scaled', 'gpt2', {'scale_attn_by_inverse_layer_idx': True}, ['scale_attn_by_inverse_layer_idx']),
      ('positions', 'bert', {'position_embedding_type': 'relative_key'}, ['relative_key', "'absolute'"]),
      ('last_norm', 'opt', {'_remove_final_layer_norm': True}, ['_remove_final_layer_norm']))
  def test_refused(self, family, changes, words):
    with self.assertRaises(errors.UserError) as caught:
      configs.read(_config(family, **changes), 'DIR/config.json')
    message = str(caught.exception)
    self.assertLen(message.splitlines(), 1)
    for word in words:
      self.assertIn(word, message)

  @parameterized.parameters(*model_directories.CONFIGS)
  def test_odd_values_of_every_key_are_read_or_refused(self, family):
    odd = (None, -1, 0, 1.5, '', 'x', [], ['x'], [1], {}, {'x': 1}, True, 2**70, float('nan'), float('inf'))
    keys = (*model_directories.CONFIGS[family], 'rope_scaling', 'rope_parameters', 'layer_types', 'head_dim',
            'use_sliding_window', 'max_window_layers', 'hidden_act', 'activation_function', 'n_inner', 'seq_length')
    refused = 0
    for key in keys:
      for value in odd:
        try:
          values = configs.read(_config(family, **{key: value})).to_dict()
          self.assertIsInstance(values['norm_epsilon'], float)
          self.assertLess(max(v for v in values.values() if isinstance(v, int)), 2**25)
        except errors.UserError:
          refused += 1
    self.assertGreater(refused, 5 * len(model_directories.CONFIGS[family]))


if __name__ == '__main__':
  absltest.main()
