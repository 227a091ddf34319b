"""Products with quantized weights alone: of the dequantized weights on every device, and for Hopper."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

import kernels
from tests import gpus
from tests import product_cases


class XlaTest(product_cases.WeightOnlyCases):
  implementation = 'xla'


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
      (dict(bias=np.ones(6, np.float32)), ValueError, r'bias of shape \(6,\) does not fit 7 outputs'),
      (dict(implementation='mosaic_gpu'), NotImplementedError, 'compute capability 9.0, and this is cpu'))
  def test_operands_that_do_not_fit(self, overrides, error, message):
    arguments = product_cases.weight_only_problem(3, 24, 7, 2, False, False) | overrides
    with self.assertRaisesRegex(error, message):
      kernels.weight_only_matmul(**arguments)


if __name__ == '__main__':
  absltest.main()
