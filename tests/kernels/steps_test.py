"""The steps of a product start in order with their own operands, and leave once, when their product has ended."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels.mosaic import steps


class StepsTest(parameterized.TestCase):

  @parameterized.product(count=[1, 2, 3, 4, 5, 8], overlap=[False, True])
  def test_the_order_of_a_product(self, count, overlap):
    started, ended, left, loaded, at_once = [], [], [], [], []

    def arrive(k):
      self.assertLess(k, count)
      return 10 + int(k)

    def load(slot):
      loaded.append(slot - 10)
      at_once.append(len(started) - len(ended))
      return slot + 100

    def start(slot, operand):
      self.assertEqual(operand, slot + 100)
      started.append(slot - 10)

    def leave(k):
      self.assertIn(int(k), ended)  # its product has read the slot
      left.append(int(k))

    def wait(count):
      ended.extend(started[len(ended) : len(started) - count])

    with jax.disable_jit(), mock.patch.object(plgpu, 'wgmma_wait', wait):
      steps.Steps(count, arrive, leave, overlap).multiply(load, start)
    every = list(range(count))
    self.assertEqual([loaded, started, ended, left], [every] * 4)
    # With the product of the step before under way; the first has none.
    self.assertEqual(at_once, [0] + [int(overlap)] * (count - 1))


if __name__ == '__main__':
  absltest.main()
