"""What a quantized tree is called in results: bits of weights, of activations and of attention's values."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp

from jaxquant.numerics import formats
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from launch import scoring
from tests import networks

_STATIC = quantizers.ClipQuantizer(jnp.float32(-1), jnp.float32(1), 6)
_DYNAMIC = quantizers.DynamicQuantizer(formats.IntFormat(8))
_VALUES = quantizers.ClipQuantizer(-jnp.ones(8), jnp.ones(8), 4)


class DescribedTest(parameterized.TestCase):

  @parameterized.parameters(
      ({}, 'W16A16'), ({'attention/value': _VALUES}, 'W16A16V4'), ({'mlp/input': _STATIC}, 'W16A6 static'),
      ({'attention/value': _VALUES, 'mlp/input': _DYNAMIC}, 'W16A8V4 dynamic'),
      ({'attention/value': _DYNAMIC, 'attention/key': _DYNAMIC}, 'W16A16KV8'),
      ({'attention/value': _VALUES, 'attention/key': _DYNAMIC}, 'W16A16K8V4'),
      ({'attention/query': _STATIC, 'attention/probabilities': _STATIC}, 'W16A16'))
  def test_operands_of_attention_are_no_activations_of_linears(self, inputs, name):
    params = networks.params('llama')
    for path, quantizer in inputs.items():
      params = trees.put(params, f'layers/0/{path}/quantizer', quantizer)
    self.assertEqual(scoring.described(params).name, name)

  def test_kernels_that_differ_are_called_by_their_mean(self):
    params = networks.params('llama')
    for path, bits in (('q', 4), ('o', 8)):
      path = f'layers/0/attention/{path}/kernel'
      params = trees.put(params, path, quantize.quantize(trees.get(params, path), formats.IntFormat(bits)))
    self.assertEqual(scoring.described(params).name, 'W6A16')


if __name__ == '__main__':
  absltest.main()
