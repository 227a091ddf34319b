"""Products with quantized weights alone: of the dequantized weights on every device, and for Hopper."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import kernels
from kernels.mosaic import weight_only
from tests import gpus
from tests import product_cases


class XlaTest(product_cases.WeightOnlyCases):
  implementation = 'xla'
  rounds_groups = True

  @parameterized.product(dtype=[jnp.float16, jnp.float32], groups=[1, 2])
  def test_activations_of_other_dtypes(self, dtype, groups):
    arguments = product_cases.weight_only_problem(3, 256, 24, groups, True, bias=True)
    arguments['x'] = arguments['x'].astype(dtype)
    self.rounds_groups = False  # to bfloat16
    want, magnitude = self.expected(arguments)
    got = kernels.weight_only_matmul(**arguments, w_bits=4, implementation='xla')
    self.assertEqual(got.dtype, dtype)
    bound = (2**-16 + jnp.finfo(dtype).eps) * magnitude + jnp.finfo(dtype).eps * np.abs(want)
    self.assertLessEqual((np.abs(np.float64(got) - want) - bound).max(), 0)

  @parameterized.parameters(((0, 24), 7), ((2, 0), 7), ((2, 24), 0))
  def test_nothing_to_sum_leaves_the_bias(self, size, outputs):
    tokens, inputs = size
    bias = jnp.arange(outputs, dtype=jnp.float32)
    got = kernels.weight_only_matmul(
        jnp.ones(size), jnp.zeros((inputs, outputs), jnp.int8), jnp.ones((1, outputs)), bias=bias, w_bits=4)
    np.testing.assert_array_equal(got, np.broadcast_to(bias, (tokens, outputs)))


@gpus.needed
class MosaicTest(product_cases.WeightOnlyTilingCases):
  implementation = 'mosaic_gpu'


class RefusalTest(parameterized.TestCase):

  @parameterized.parameters(
      (dict(implementation='cuda'), ValueError, "unknown implementation 'cuda'; there are xla, mosaic_gpu"),
      (dict(w_codes=np.zeros((12, 7), np.int8)), ValueError, r'cannot contract activations of shape \(3, 24\)'),
      (dict(w_scale=np.ones((5, 7), np.float32)), ValueError, r'w_scale float32 \[5, 7\] does not fit 24 x 7'),
      (dict(w_offset=np.ones((1, 7), np.float32)), ValueError, r'w_offset float32 \[1, 7\] does not fit'),
      (dict(layout=kernels.Layout.DINT4), ValueError, 'layout dint4 multiply quantized activations only'),
      (dict(w_codes=np.ones((24, 7), np.int16)), ValueError, 'codes must be int8, not int16'),
      (dict(w_codes=np.ones((24, 7), np.float32)), ValueError, 'codes must be int8, not float32'),
      (dict(w_codes=np.zeros((), np.int8)), ValueError, r'codes of shape \(\)'),
      (dict(x=np.ones((3, 24), np.int32)), ValueError, r'bfloat16, float16 or float32 \[..., K\], not int32 \[3, 24\]'),
      (dict(x=jnp.float32(1)), ValueError, r'not float32 \[\]'),
      (dict(x=[[1.0]]), ValueError, 'x must be an array, not a list'),
      (dict(w_codes=None), ValueError, 'w_codes must be an array, not a NoneType'),
      (dict(w_scale=np.ones(7, np.float32)), ValueError, r'must be float32 \[groups, outputs\], not float32 \[7\]'),
      (dict(w_scale=np.ones((0, 7), np.float32)), ValueError, r'w_scale float32 \[0, 7\] does not fit 24 x 7'),
      (dict(w_bits=9), ValueError, 'w_bits must be an integer from 1 to 8 here, not 9'),
      (dict(w_bits=8, layout=kernels.Layout.INT4_WIDE), ValueError, 'from 1 to 4 here, not 8'),
      (dict(layout='codes'), ValueError, "must be a kernels.Layout, not 'codes'"),
      (dict(bias=np.ones(7, np.int32)), ValueError, r'bias of shape \(7,\) and dtype int32 does not fit'),
      (dict(bias=np.ones(6, np.float32)), ValueError, r'bias of shape \(6,\) and dtype float32 does not fit 7 outputs'),
      (dict(out_dtype=jnp.int8), ValueError, 'out_dtype must be a floating dtype'),
      (dict(implementation='mosaic_gpu'), NotImplementedError, 'compute capability 9.0, and this is cpu'))
  def test_operands_that_do_not_fit(self, overrides, error, message):
    arguments = product_cases.weight_only_problem(3, 24, 7, 2, False, False) | {'w_bits': 4} | overrides
    with self.assertRaisesRegex(error, message):
      kernels.weight_only_matmul(**arguments)

  def test_bits_of_codes_have_no_default_that_could_cut_them(self):
    with self.assertRaisesRegex(TypeError, 'w_bits'):
      kernels.weight_only_matmul(**product_cases.weight_only_problem(3, 24, 7, 2, False, False))

  @parameterized.parameters(((0, 128), 128), ((2, 0), 128), ((2, 128), 0))
  def test_the_kernel_takes_no_empty_problem(self, size, outputs):
    of = jax.ShapeDtypeStruct
    operands = dict(x=of(size, jnp.bfloat16), w_codes=of((size[1], outputs), jnp.int8),
                    w_scale=of((1, outputs), jnp.float32), w_offset=None, bias=None)
    with self.assertRaisesRegex(NotImplementedError, 'nothing to multiply'):
      jax.eval_shape(lambda a: weight_only.lowered(
          a, layout=kernels.Layout.CODES, w_bits=4, out_dtype=jnp.bfloat16), operands)


if __name__ == '__main__':
  absltest.main()
