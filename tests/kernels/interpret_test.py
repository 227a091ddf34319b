"""The kernels' own bodies, interpreted: pipelines, addresses, terms and the way to memory, with weights of 8 bits.

Weights of 4 bits are unpacked in registers, which the interpreter does not know; `prepack_test` emulates that part.
Nor does it know sums that cross warpgroups, so that products of few tokens run in one.
"""

import unittest
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np

import kernels
from kernels import tuning
from kernels.mosaic import configs
from kernels.mosaic import matmul
from tests import product_cases


@unittest.skipUnless(hasattr(plgpu, 'force_gpu_interpret_mode'), 'this jax does not interpret Mosaic')
class InterpretTest(parameterized.TestCase):

  @parameterized.parameters(
      (configs.Prefill(tile_m=64, stages=2), (72, 384, 256), 'both, per token', jnp.bfloat16),
      (configs.Prefill(tile_m=32, tile_k=256, stages=3, panel=1), (96, 512, 384), 'none', jnp.bfloat16),
      (configs.Prefill(tile_n=128, tile_m=16, stages=2, warpgroups=1), (33, 256, 128), 'w', jnp.float32),
      (configs.Prefill(tile_m=64, stages=2, cluster=2), (136, 384, 512), 'none', jnp.bfloat16),
      (configs.Decode(tile_m=8, tile_k=128, stages=2, warpgroups=1), (5, 640, 128), 'both, scalar', jnp.bfloat16),
      (configs.Decode(tile_m=16, stages=4, warpgroups=1), (24, 256, 100), 'x, per token', jnp.float32),
      (configs.Prefill(tile_m=64, stages=2), (72, 384, 256), 'both, per token', jnp.float32, 3),
      (configs.Decode(tile_m=8, tile_k=64, stages=2, warpgroups=1), (5, 640, 128), 'w', jnp.float32, 10))
  def test_products(self, config, shape, offsets, dtype, groups=1):
    # Two multiprocessors take several tiles each, so that pipelines run on from one tile into the next.
    arguments = product_cases.problem(bits=(8, 8), groups=(1, groups), offsets=offsets, bias=True, shape=shape)
    want, size = product_cases.reference(arguments)
    operands = dict.fromkeys(['x_offset', 'w_offset', 'row_sums', 'column_sums']) | jax.tree.map(jnp.asarray, arguments)
    with (tuning.forced(lambda _: config), mock.patch.object(configs, 'CORES', 2),
          plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams())):
      got = matmul.lowered(operands, layout=kernels.Layout.CODES, x_bits=8, w_bits=8, out_dtype=dtype)
    self.assertEqual((got.shape, got.dtype), (want.shape, dtype))
    rounding = float(jnp.finfo(dtype).eps) / 2
    excess = np.abs(np.asarray(got, np.float64) - want) - rounding * np.abs(want) - 4e-7 * size
    self.assertLessEqual(excess.max(), 0)


if __name__ == '__main__':
  absltest.main()
