"""The architecture as data: what is derived, what is refused, and the sizes that reports are computed from."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from jaxquant import errors
from jaxquant.models import config as model_config
from jaxquant.models import validate
from jaxquant.numerics import trees
from tests import networks

_SIZES = dict(vocabulary=32, width=24, layers=2, heads=4, feed_forward=40)


class ConfigTest(parameterized.TestCase):

  def test_heads_are_shared_and_sized_only_on_request(self):
    config = model_config.TransformerConfig(**_SIZES)
    self.assertEqual((config.kv_heads, config.head_dim), (4, 6))
    config = model_config.TransformerConfig(**_SIZES, kv_heads=2, head_dim=10)
    self.assertEqual((config.kv_heads, config.head_dim), (2, 10))

  @parameterized.parameters(
      (dict(heads=5), 'model.width 24 is not a multiple of model.heads 5'),
      (dict(kv_heads=3), 'model.heads 4 is not a multiple of model.kv_heads 3'),
      (dict(head_dim=5), 'rotary positions need an even head_dim, not 5'),
      (dict(norm='batch'), "model.norm is 'batch'; there are rms, layer"),
      (dict(activation='swish'), "model.activation is 'swish'; there are silu, relu, gelu, gelu_tanh"),
      (dict(positions="sinusoidal"), "model.positions is 'sinusoidal'; there are rotary, learned, alibi"),
      (dict(causal=False), "model.causal is False, so model.tied must be True: an encoder's head reads its embedding"),
      (dict(token_types=2), r'model.token_types is 2, but only an encoder has types, see model.causal'),
      (dict(dtype='int8'), "model.dtype is 'int8'; there are"),
      (dict(attention_backend='triton'), "model.attention_backend is 'triton'; there are"))
  def test_mistakes_are_named_with_the_choices(self, values, message):
    with self.assertRaisesRegex(errors.UserError, message):
      model_config.TransformerConfig(**{**_SIZES, **values})

  def test_odd_heads_are_fine_without_rotation(self):
    self.assertEqual(model_config.TransformerConfig(**_SIZES, head_dim=5, positions='learned').head_dim, 5)

  @parameterized.parameters(*networks.STYLES)
  def test_json_form_and_back(self, style):
    config = networks.config(style)
    self.assertEqual(model_config.TransformerConfig.from_dict(config.to_dict()), config)

  @parameterized.parameters(
      ({**_SIZES, 'widht': 3}, 'unknown model.widht; did you mean model.width?'),
      ({**_SIZES, 'quantum': 3}, r'unknown model.quantum$'),
      ({'vocabulary': 3, 'layers': 1}, 'the model needs model.width, model.heads, model.feed_forward'))
  def test_unknown_and_missing_keys_are_named(self, values, message):
    with self.assertRaisesRegex(errors.UserError, message):
      model_config.TransformerConfig.from_dict(values)

  @parameterized.parameters(*networks.STYLES)
  def test_block_parameters_are_those_of_the_kernels(self, style):
    config = networks.config(style, layers=3)
    sizes = [np.prod(leaf.shape) for path, leaf in trees.arrays(validate.abstract_params(config)).items()
             if path.startswith('layers/') and path.endswith('/kernel')]
    self.assertEqual(config.block_parameters, sum(sizes))

  def test_training_operations_of_a_token(self):
    # Forward, and twice that backward: a product costs 2 a weight; scores and their mix 2 a feature and token each, of
    # which a token attends to half on average.
    config = model_config.TransformerConfig(**_SIZES)
    weights = 2 * (4 * 24 * 24 + 3 * 24 * 40) + 32 * 24
    self.assertEqual(config.training_flops_per_token(100), 3 * (2 * weights + 2 * (2 + 2) * 24 * 100 / 2))


if __name__ == '__main__':
  absltest.main()
