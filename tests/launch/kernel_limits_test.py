"""Kernels without a part of their work copy or multiply less, and those behind them are whole again."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from jax.experimental.pallas import mosaic_gpu as plgpu

import kernels
from kernels import tuning
from kernels.mosaic import configs
from kernels.mosaic import mma
from launch.benchmarks import kernel_cases
from launch.benchmarks import kernel_limits
from tests import lowering


def _work(config) -> tuple[int, int]:
  """(copies, products) that the kernel in a configuration has."""
  spied = lambda owner, name: mock.patch.object(owner, name, wraps=getattr(owner, name))
  with (tuning.forced(lambda _: config), spied(plgpu, 'copy_gmem_to_smem') as copies, spied(plgpu, 'wgmma') as wgmma,
        spied(mma, 'multiply') as multiply):
    lowering.product(kernel_cases.product(16, 2048, 4096, kernels.Layout.INT4))
  return copies.call_count, wgmma.call_count + multiply.call_count


class WithoutTest(parameterized.TestCase):

  @parameterized.parameters(
      configs.Decode(16, 512, 2, 2, fold=2, shared=True), configs.Decode(16, 256, 2, 1, shared=True, copying=False),
      configs.Prefill(tile_m=64, stages=3), configs.Prefill(tile_m=64, stages=5))
  def test_what_is_left_out(self, config):
    work = {}
    for part in (*kernel_limits.PARTS, 'nothing'):
      with kernel_limits.without(part):
        work[part] = _work(config)
    copies, products = work['nothing']
    self.assertGreater(products, 0)
    self.assertEqual(work['products'], (copies, 0))
    for part in ('weights', 'activations'):
      self.assertLess(work[part][0], copies)
      self.assertEqual(work[part][1], products)
    self.assertEqual(work['weights, products'], (work['weights'][0], 0))
    self.assertEqual(_work(config), (copies, products))


if __name__ == '__main__':
  absltest.main()
