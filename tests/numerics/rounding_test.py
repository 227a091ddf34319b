"""Learned ranges: values and gradients against golden numbers and a float64 reference that shares no code with them."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant.numerics import rounding

_BITS = [2, 4, 8]


def _random(*shape, seed=0, scale=1.0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32) * np.float32(scale)


@functools.cache
def _pullback(function, static):
  def values_and_gradients(arguments, g):
    values, pullback = jax.vjp(lambda *a: function(*a, *static), *arguments)
    return values, pullback(g)

  return jax.jit(values_and_gradients)


def _vjp(function, static, x, *ends):
  """(values of `function(x, *ends, *static)`, its gradients, the cotangent: random, or ones where `x` is a vector)."""
  g = np.ones_like(x) if x.ndim == 1 else _random(*x.shape, seed=9).astype(x.dtype)
  values, gradients = _pullback(function, static)((jnp.asarray(x), *map(jnp.float32, ends)), jnp.asarray(g))
  return values, gradients, np.asarray(g, np.float64)


def _clip_reference(x, low, high, bits, g):
  """Values and gradients (dx, dlow, dhigh) of methods for a learned clip, all float64."""
  x, n = np.asarray(x, np.float64), 2**bits - 1
  step = (high - low) / n
  u = (np.clip(x, low, high) - low) / step
  above, below = x >= high, x <= low
  inside = ~(above | below)
  error = (u - np.round(u)) / n
  d_low = g[below].sum() + (error * g)[inside].sum()
  d_high = g[above].sum() - (error * g)[inside].sum()
  return low + step * np.round(u), (np.where(inside, g, 0), d_low, d_high)


def _step_reference(x, step, minimum, maximum, g):
  """Values and gradients (dx, dstep) of LSQ, equations 1 to 3 with the gradient scale, all float64."""
  v = np.asarray(x, np.float64) / step
  inside = (v > minimum) & (v < maximum)
  slope = np.where(inside, np.round(v) - v, np.clip(v, minimum, maximum))
  values = step * np.round(np.clip(v, minimum, maximum))
  return values, (np.where(inside, g, 0), (slope * g).sum() / np.sqrt(v.size * maximum))


def _assert_equal(test, got, want):
  """Compares (values, gradients) pairs; float32 may put one element in a thousand on the other side of a tie."""
  (values, gradients), (want_values, want_gradients) = got, want
  same = np.isclose(np.asarray(values, np.float64), want_values, atol=1e-5)
  test.assertGreaterEqual(same.mean(), 0.998)
  for gradient, wanted in zip(gradients, want_gradients):
    np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-4 * np.sqrt(values.size))


class ClipQuantizeTest(parameterized.TestCase):

  def test_golden_values_of_the_specification(self):
    x = np.array([-5, -1.3, 0.1, 2.2, 9], np.float32)
    values, (dx, d_low, d_high), _ = _vjp(rounding.clip_quantize, (4,), x, -3, 4)
    np.testing.assert_allclose(values, [-3, -1.133333, 0.266667, 2.133333, 4], atol=1e-6)
    np.testing.assert_array_equal(dx, [0, 1, 1, 1, 0])
    np.testing.assert_allclose(d_high, 0.023810 + 0.023810 - 0.009524 + 1, atol=2e-6)
    np.testing.assert_allclose(d_low, 1 - 0.023810 - 0.023810 + 0.009524, atol=2e-6)

  @parameterized.parameters((-5, 0, 1), (-1.3, 0.023810, -0.023810), (0.1, 0.023810, -0.023810),
                            # 2.2 > high + low is where the public kernel of the paper goes wrong (+0.0286).
                            (2.2, -0.009524, 0.009524), (9, 1, 0))
  def test_golden_gradients_of_single_elements(self, x, d_high, d_low):
    _, (_, low, high), _ = _vjp(rounding.clip_quantize, (4,), np.array([x], np.float32), -3, 4)
    np.testing.assert_allclose([low, high], [d_low, d_high], atol=2e-6)

  def test_an_element_equal_to_an_end_is_outside(self):
    values, (dx, d_low, d_high), _ = _vjp(rounding.clip_quantize, (4,), np.array([4, -3, 4], np.float32), -3, 4)
    np.testing.assert_allclose(values, [4, -3, 4], rtol=1e-6)
    np.testing.assert_array_equal(dx, 0)
    self.assertEqual((d_low, d_high), (1, 2))

  @parameterized.product(bits=_BITS, ends=[(-1.5, 2.0), (-0.3, 0.01), (0.5, 1.0)], shape=[(20, 30), (300,)])
  def test_values_and_gradients_are_those_of_a_float64_reference(self, bits, ends, shape):
    x = _random(*shape)
    values, gradients, g = _vjp(rounding.clip_quantize, (bits,), x, *ends)
    low, high = np.float32(ends).astype(np.float64)
    _assert_equal(self, (values, gradients), _clip_reference(x, low, high, bits, g))

  @parameterized.parameters(*_BITS)
  def test_gradients_are_straight_through_differentiation_of_the_formula(self, bits):
    def formula(x, low, high, bits):
      step = (high - low) / (2**bits - 1)
      return low + step * rounding.straight_through_round((jnp.clip(x, low, high) - low) / step)

    x = _random(20, 30, seed=3)
    got, want = (_vjp(function, (bits,), x, -1, 2) for function in (rounding.clip_quantize, formula))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-4), got, want)

  def test_bfloat16_inputs_are_rounded_in_float32(self):
    x = _random(20, 30).astype(jnp.bfloat16)
    values, (dx, d_low, d_high), _ = _vjp(rounding.clip_quantize, (8,), x, -1, 2)
    self.assertEqual([a.dtype for a in (values, dx, d_low, d_high)], [jnp.bfloat16] * 2 + [jnp.float32] * 2)
    wide, (_, wide_low, wide_high), _ = _vjp(rounding.clip_quantize, (8,), x.astype(np.float32), -1, 2)
    np.testing.assert_array_equal(values, wide.astype(jnp.bfloat16))
    # Only the cotangent is narrower.
    np.testing.assert_allclose([d_low, d_high], [wide_low, wide_high], rtol=0.02, atol=0.02)

  def test_gradients_work_under_vmap(self):
    x, ends = jnp.asarray(_random(3, 4, 5)), jnp.array([1.0, 2.0, 3.0])
    gradient = jax.grad(lambda x, end: jnp.sum(rounding.clip_quantize(x, -end, end, 4) ** 2), (0, 1))
    batched = jax.jit(jax.vmap(gradient))(x, ends)
    single = map(jax.jit(gradient), x, ends)
    for got, want in zip(batched, zip(*single)):
      np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


class AlignZeroTest(absltest.TestCase):

  def test_golden_values_of_the_specification(self):
    low, high = rounding.align_zero(jnp.float32(-3), jnp.float32(4), 4)
    values = rounding.clip_quantize(jnp.array([-5, -1.3, 0.1, 2.2, 9]), low, high, 4)
    np.testing.assert_allclose(values, [-2.8, -1.4, 0, 2.333333, 4.2], atol=1e-6)

  def test_shifts_by_less_than_half_a_step_and_makes_zero_a_level(self):
    for low, high in np.random.default_rng(0).uniform(0.01, 3, size=(50, 2)) * [-1, 1]:
      new_low, new_high = rounding.align_zero(jnp.float32(low), jnp.float32(high), 4)
      step = (high - low) / 15
      self.assertLessEqual(abs(new_low - low), step * 0.5001)
      np.testing.assert_allclose(new_high - new_low, high - low, rtol=1e-6)
      self.assertAlmostEqual(float(rounding.clip_quantize(jnp.float32([1e-6 * step]), new_low, new_high, 4)[0]), 0, 6)

  def test_gradients_reach_both_ends(self):
    align = lambda ends: jnp.stack(rounding.align_zero(ends[0], ends[1], 4))
    jacobian = np.array(jax.jit(jax.jacobian(align))(jnp.array([-3.0, 4.0])))
    np.testing.assert_allclose(jacobian, np.eye(2), atol=0.5 / 15 + 1e-6)


class StepQuantizeTest(parameterized.TestCase):

  @parameterized.product(bits=_BITS, step=[0.05, 0.7])
  def test_values_and_gradients_are_those_of_a_float64_reference(self, bits, step):
    bounds = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    x = _random(20, 30, seed=4)
    values, gradients, g = _vjp(rounding.step_quantize, bounds, x, step)
    _assert_equal(self, (values, gradients), _step_reference(x, float(np.float32(step)), *bounds, g))

  def test_an_element_equal_to_a_bound_is_outside(self):
    values, (dx, d_step), _ = _vjp(rounding.step_quantize, (-8, 7), np.array([3.5, -4, 3.25, 1], np.float32), 0.5)
    np.testing.assert_array_equal(values, [3.5, -4, 3, 1])
    np.testing.assert_array_equal(dx, [0, 0, 1, 1])
    np.testing.assert_allclose(d_step, (7 - 8 - 0.5 + 0) / np.sqrt(4 * 7), rtol=1e-6)

  def test_outside_the_range_the_gradient_is_that_of_finite_differences(self):
    x, scale = np.array([50.0, -50.0, 40.0, 60.0], np.float32), 1 / np.sqrt(4 * 7)
    loss = jax.jit(lambda step: jnp.sum(rounding.step_quantize(x, step, -8, 7)))
    slope = (float(loss(0.6)) - float(loss(0.4))) / 0.2
    np.testing.assert_allclose(jax.grad(loss)(0.5), slope * scale, rtol=1e-5)

  def test_inside_the_range_the_gradient_is_that_of_the_surrogate(self):
    # Straight-through differentiation holds the rounding errors fixed: value = (v + error) * step.
    x, step, epsilon = _random(40, seed=5, scale=0.5).astype(np.float64), 0.3, 1e-5
    error = np.round(x / step) - x / step
    surrogate = lambda s: ((x / s + error) * s).sum()
    slope = (surrogate(step + epsilon) - surrogate(step - epsilon)) / (2 * epsilon)
    gradient = jax.grad(jax.jit(lambda s: jnp.sum(rounding.step_quantize(np.float32(x), s, -8, 7))))
    np.testing.assert_allclose(gradient(step), slope / np.sqrt(40 * 7), rtol=1e-3)


class PactQuantizeTest(parameterized.TestCase):

  @parameterized.product(bits=_BITS, signed=[True, False])
  def test_values_and_gradients_are_those_of_the_paper(self, bits, signed):
    x, clip = _random(20, 30, seed=6), np.float64(np.float32(1.3))
    values, (dx, d_clip), g = _vjp(rounding.pact_quantize, (bits, signed), x, clip)
    low = -clip if signed else 0.0
    want, (want_dx, _, _) = _clip_reference(x, low, clip, bits, g)
    want_clip = g[x >= clip].sum() - (g[x <= low].sum() if signed else 0)
    _assert_equal(self, (values, (dx, d_clip)), (want, (want_dx, want_clip)))

  def test_an_element_equal_to_an_end_is_outside(self):
    _, (dx, d_clip), _ = _vjp(rounding.pact_quantize, (4, True), np.array([2, -2, 1], np.float32), 2)
    np.testing.assert_array_equal(dx, [0, 0, 1])
    self.assertEqual(d_clip, 0)
    _, (dx, d_clip), _ = _vjp(rounding.pact_quantize, (4, False), np.array([2, 0, 1], np.float32), 2)
    np.testing.assert_array_equal(dx, [0, 0, 1])
    self.assertEqual(d_clip, 1)


class StraightThroughRoundTest(absltest.TestCase):

  def test_rounds_half_to_even_with_derivative_one(self):
    x = jnp.array([0.5, 1.5, -2.5, 0.2])
    values, tangents = jax.jvp(rounding.straight_through_round, (x,), (jnp.arange(4.0),))
    np.testing.assert_array_equal(values, [0, 2, -2, 0])
    np.testing.assert_array_equal(tangents, [0, 1, 2, 3])


if __name__ == '__main__':
  absltest.main()
