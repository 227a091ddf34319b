"""Gates: pairs of runs, and what is refused behind a result."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

import kernels
from kernels import gates
from tests import attention_cases
from tests import product_cases


class GatesTest(parameterized.TestCase):

  @parameterized.parameters(((24,), 0), ((3, 16), -1), ((16, 5), 0), ((2, 8, 3), 1))
  def test_halves_take_turns_in_runs_of_eight(self, shape, axis):
    size = int(np.prod(shape))
    first, second = (jnp.arange(size).reshape(shape) + start for start in (0, size))
    got = gates.paired(first, second, axis)
    runs = np.split(np.arange(2 * shape[axis]), range(8, 2 * shape[axis], 8))
    for i, run in enumerate(runs):
      want = jnp.take((first, second)[i % 2], np.arange(8) + i // 2 * 8, axis=axis)
      np.testing.assert_array_equal(jnp.take(got, run, axis=axis), want)
    for half, want in zip(gates.halves(got, axis), (first, second)):
      np.testing.assert_array_equal(half, want)

  @parameterized.parameters(
      (kernels.Behind('relu'), "unknown gate 'relu'; there is silu"),
      (kernels.Behind('silu'), 'takes features in pairs of runs of 8, not 24 of them'),
      (kernels.Behind(static=(jnp.float32(1), None)), 'is a kernels.StaticRange, not a tuple'),
      (kernels.Behind(static=kernels.StaticRange(jnp.ones(3))), 'scalar scale'),
      (kernels.Behind(static=kernels.StaticRange(jnp.float32(1)), bits=9), 'bits must be an integer from 2 to 8'),
      ('silu', 'what happens behind is a kernels.Behind, not a str'))
  def test_refuses_what_does_not_fit_behind(self, behind, message):
    with self.assertRaisesRegex(ValueError, message):
      kernels.quantized_matmul(**product_cases.problem(shape=(3, 16, 24)), behind=behind)
    weights = product_cases.weight_only_problem(3, 16, 24, 1, False, False)
    with self.assertRaisesRegex(ValueError, message):
      kernels.weight_only_matmul(**weights, w_bits=4, behind=behind)

  def test_mixed_values_have_no_gate(self):
    with self.assertRaisesRegex(ValueError, 'mixed values have no gate'):
      kernels.decode_attention(**attention_cases.step((2, 4, 2, 64)), behind=kernels.Behind('silu'))


if __name__ == '__main__':
  absltest.main()
