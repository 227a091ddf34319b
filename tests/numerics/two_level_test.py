"""Two-level scales: exact multiples of a base for each output, the nearest there are, and found again without error."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant.numerics import formats
from jaxquant.numerics import quantize
from jaxquant.numerics import two_level
from kernels import integer_weights

_TINY = float(np.finfo(np.float32).tiny)
_snapped = jax.jit(two_level.snapped)


def _scales(low=0.05, groups=8, outputs=40, unit=1.0):
  """Scales of groups between `low` and 1 units, some outputs' magnitudes far from others'."""
  rng = np.random.default_rng(0)
  return np.float32(unit) * np.float32(rng.uniform(low, 1, (groups, outputs)) * np.exp2(rng.integers(-9, 1, outputs)))


def _everywhere(scale):
  return np.ones(scale.shape, bool)


class SnappedTest(parameterized.TestCase):

  # Scales of ranges are normal numbers, and no more than 8.5e37, which is the largest that can be divided by.
  @parameterized.parameters(1.0, 3e-3, 1e-33, 8e37)
  def test_levels_are_found_again_and_multiply_exactly(self, unit):
    scale = np.asarray(_snapped(_scales(unit=unit), _everywhere(_scales())))
    base, multiplier = two_level.levels(scale)
    self.assertEqual((base.dtype, base.shape, multiplier.dtype), (np.float32, (1, 40), np.int32))
    self.assertEqual((multiplier.shape, multiplier.min() >= 1, multiplier.max()), (scale.shape, True, two_level.MOST))
    np.testing.assert_array_equal(np.float64(base) * multiplier, np.float64(scale))

  @parameterized.parameters(0.01, 0.5)
  def test_multiples_are_the_nearest(self, low):
    given = _scales(low)
    got, base = np.float64(_snapped(given, _everywhere(given))), given.max(axis=0, keepdims=True) / 15.0
    np.testing.assert_allclose(got.max(axis=0), given.max(axis=0), rtol=2**-16)
    within = given > base
    self.assertLessEqual((np.abs(got - given) / base)[within].max(), 0.5 + 1e-3)
    # Smaller ones than half a base get one.
    np.testing.assert_allclose((got / base)[given < base / 2], 1, rtol=2**-16)
    self.assertEqual((given < base / 2).any(), low < 0.03)

  @parameterized.parameters(1.0, 1e-33, 8e37)
  def test_two_level_scales_stay_and_no_compiler_changes_a_bit(self, unit):
    given = _scales(unit=unit)
    once = _snapped(given, _everywhere(given))
    np.testing.assert_array_equal(_snapped(once, _everywhere(given)), once)
    np.testing.assert_array_equal(two_level.snapped(jnp.asarray(given), jnp.asarray(_everywhere(given))), once)

  def test_at_the_smallest_normal_number_the_base_stops(self):
    scale = np.float32([[_TINY], [2 * _TINY], [6 * _TINY]])
    got = np.asarray(_snapped(scale, _everywhere(scale)))
    np.testing.assert_array_equal(got, scale)
    base, multiplier = two_level.levels(got)
    np.testing.assert_array_equal(np.float64(base) * multiplier, np.float64(scale))

  def test_groups_of_zeros_have_no_say(self):
    given = _scales()
    used = _everywhere(given)
    used[2], used[:, 7] = False, False
    got = np.asarray(_snapped(np.where(used, given, 1), used))
    want = np.asarray(_snapped(given[used.any(axis=1)], used[used.any(axis=1)]))
    np.testing.assert_array_equal(got[used.any(axis=1)], want)
    np.testing.assert_array_equal(got[:, 7], 1)
    self.assertIsNotNone(two_level.levels(got))

  @parameterized.parameters(np.nan, np.inf)
  def test_what_is_not_finite_stays_so(self, value):
    given = _scales()
    given[3, 5] = value
    got = np.isfinite(_snapped(given, _everywhere(given)))
    self.assertFalse(got[3, 5])
    self.assertTrue(np.delete(got, 5, axis=1).all())

  def test_the_error_is_that_of_scales_as_they_are_but_for_half_a_percent(self):
    """The mean squared error on Gaussian weights, int4 in 32 groups of 128; rounding multipliers up costs tenfold."""
    kernel, fmt = jnp.asarray(np.random.default_rng(1).normal(size=(4096, 96)), jnp.float32), formats.IntFormat(4)
    scale, _ = quantize.affine(*quantize.group_range(kernel, axis=-2, group_size=128), fmt)
    base = scale.max(axis=0) / 15
    def error(scale):
      return float(jnp.mean((quantize.dequantize(quantize.from_scales(kernel, scale, None, fmt)) - kernel) ** 2))
    rise = lambda scale, plain=error(scale): error(scale) / plain - 1
    self.assertBetween(rise(_snapped(scale, _everywhere(scale))), 0, 0.007)
    self.assertGreater(rise(base * jnp.ceil(scale / base)), 0.08)

  def test_multiples_of_codes_are_integers_of_eight_bits(self):
    self.assertEqual(two_level.MOST, integer_weights.MOST)
    self.assertGreaterEqual(two_level.MOST * formats.parse('full_int4').minimum, -128)


class LevelsTest(parameterized.TestCase):

  def test_scales_as_they_are_have_none(self):
    self.assertIsNone(two_level.levels(_scales()))

  def test_one_scale_that_is_off_by_one_bit_is_enough(self):
    scale = np.array(_snapped(_scales(), _everywhere(_scales())))
    scale[4, 31] = np.nextafter(scale[4, 31], np.float32(2))
    self.assertIsNone(two_level.levels(scale))

  @parameterized.parameters(0.0, -0.25, np.inf, np.nan)
  def test_what_is_no_scale_has_none(self, value):
    self.assertIsNone(two_level.levels(np.float32([[0.5], [value]])))

  @parameterized.parameters(([3, 9, 12],), ([7, 14, 7],), ([11, 13, 2],), ([1, 1, 1],), ([15, 1, 8],))
  def test_the_largest_need_not_be_fifteen(self, multiplier):
    scale = np.float32(0.125 + 2**-14) * np.float32(multiplier)[:, None]
    base, got = two_level.levels(scale)
    np.testing.assert_array_equal(np.float64(base) * got, np.float64(scale))


if __name__ == '__main__':
  absltest.main()
