"""Quantize and dequantize: errors of at most half a step, exact where they can be, under JAX's transformations too."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.numerics import formats
from jaxquant.numerics import quantize

_GRANULARITIES = {
    'tensor': dict(per_tensor=True), 'channel': dict(axis=-2), 'groups': dict(axis=-2, group_size=6),
    'groups of the other axis': dict(axis=-1, group_size=5),
}
_TINY = float(np.finfo(np.float32).tiny)


def _random(*shape, seed=0):
  """Normal values with heavy tails, so that groups differ in range."""
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=shape) * np.exp(rng.normal(size=shape)), jnp.float32)


def _error_in_steps(x, q):
  """|x - dequantized| over the scale, in float64: [..., in, out]."""
  error = np.abs(np.asarray(x, np.float64) - np.asarray(quantize.dequantize(q), np.float64))
  return error / np.repeat(q.scale, q.group_size, q.axis)


class QuantizeTest(parameterized.TestCase):

  @parameterized.product(bits=list(range(2, 9)), symmetric=[True, False], granularity=list(_GRANULARITIES))
  def test_error_is_at_most_half_a_step(self, bits, symmetric, granularity):
    fmt = formats.IntFormat(bits, symmetric)
    x = _random(12, 15) + jnp.tile(jnp.array([-3.0, 0, 3]), 5)  # some channels of both signs, some nearly of one
    q = quantize.quantize(x, fmt, **_GRANULARITIES[granularity])
    self.assertLessEqual(_error_in_steps(x, q).max(), 0.5 + 1e-4)
    codes = np.asarray(q.unpacked())
    self.assertTrue((codes >= fmt.minimum).all() and (codes <= fmt.maximum).all())
    self.assertEqual((q.shape, q.scale.dtype), (x.shape, jnp.float32))

  @parameterized.product(bits=[2, 3, 4, 8], symmetric=[True, False], granularity=list(_GRANULARITIES))
  def test_quantizing_again_gives_the_same_codes(self, bits, symmetric, granularity):
    make = lambda x: quantize.quantize(x, formats.IntFormat(bits, symmetric), **_GRANULARITIES[granularity])
    q = make(_random(12, 15, seed=1))
    again = make(quantize.dequantize(q))
    np.testing.assert_array_equal(again.codes, q.codes)
    np.testing.assert_allclose(again.scale, q.scale, rtol=1e-6)

  @parameterized.parameters('int2', 'int8', 'uint2', 'uint5', 'uint8')
  def test_codes_and_scales_are_those_of_the_definition(self, name):
    fmt = formats.parse(name)
    x = np.asarray(_random(12, 15), np.float64)
    q = quantize.quantize(jnp.asarray(x, jnp.float32), fmt, group_size=6)
    got = np.asarray(q.unpacked())
    for group in range(2):
      for channel in range(15):
        part = x[6 * group : 6 * group + 6, channel]
        low, high = min(part.min(), 0), max(part.max(), 0)
        scale = max(-low, high) / fmt.maximum if fmt.symmetric else (high - low) / fmt.maximum
        zero_point = 0 if fmt.symmetric else np.round(-low / scale)
        codes = np.clip(np.round(part / scale) + zero_point, fmt.minimum, fmt.maximum)
        np.testing.assert_allclose(q.scale[group, channel], scale, rtol=1e-6)
        np.testing.assert_array_equal(got[6 * group : 6 * group + 6, channel], codes)
        if not fmt.symmetric:
          self.assertEqual(np.asarray(q.zero_point)[group, channel], zero_point)

  @parameterized.product(bits=list(range(2, 9)), symmetric=[True, False])
  def test_degenerate_groups(self, bits, symmetric):
    fmt = formats.IntFormat(bits, symmetric)
    huge = 3e38 if bits > 3 else 8e37  # the largest scale is 8.5e37
    columns = {
        'zero': np.zeros(4), 'constant': np.full(4, 5.5), 'negative': np.full(4, -0.3),
        'positive': np.linspace(5, 6, 4), 'huge': np.array([huge, -huge, 0, huge / 3]),
        'small': np.array([2e-38, -2e-38, 0, 2e-38]), 'subnormal': np.full(4, 1e-40)}
    x = np.zeros((12, 15), np.float32)
    x[:, : len(columns)] = np.tile(np.stack(list(columns.values()), 1), (3, 1))
    q = quantize.quantize(jnp.asarray(x), fmt)
    got = dict(zip(columns, np.asarray(quantize.dequantize(q), np.float64)[:4].T))
    scales = dict(zip(columns, np.asarray(q.scale)[0].tolist()))
    self.assertTrue(np.isfinite(list(got.values())).all())
    self.assertEqual(scales['zero'], 1.0)
    np.testing.assert_array_equal(got['zero'], 0)
    np.testing.assert_allclose(got['constant'], 5.5, rtol=2e-7)
    np.testing.assert_allclose(got['negative'], -0.3, rtol=2e-7)
    np.testing.assert_allclose(got['positive'][-1], 6, rtol=2e-7)
    for name in ('positive', 'huge'):
      np.testing.assert_array_less(np.abs(got[name] - columns[name]), scales[name] * 0.5001)
    # Scales cannot follow a range down to where numbers lose digits, but errors are no larger than those numbers.
    self.assertBetween(scales['small'], _TINY, 2.1e-38)
    for name in ('small', 'subnormal'):
      np.testing.assert_array_less(np.abs(got[name] - columns[name]), _TINY)

  @parameterized.parameters('int4', 'uint4')
  def test_zero_is_exact_in_every_group(self, name):
    x = np.array(_random(12, 15)) + 2
    x[3] = 0
    q = quantize.quantize(jnp.asarray(x), formats.parse(name), group_size=6)
    np.testing.assert_array_equal(np.asarray(quantize.dequantize(q))[3], 0)

  @parameterized.product(bits=list(range(2, 9)), granularity=[{'group_size': 4}, {'axis': -1}, {'per_tensor': True}])
  def test_without_zero_in_range_the_ends_are_those_of_the_group(self, bits, granularity):
    """No group collapses or wastes codes on what lies between it and zero; its ends are values."""
    fmt = formats.parse(f'offset_uint{bits}')
    x = np.random.default_rng(bits).normal(size=(8, 12)).astype(np.float32) / 10
    x[:4, :6] += 5
    x[4:, 6:] -= 300
    q = quantize.quantize(jnp.asarray(x), fmt, **granularity)
    self.assertEqual((q.zero_point.dtype, q.zero_point.shape), (jnp.float32, q.scale.shape))
    error = np.abs(np.asarray(quantize.dequantize(q)) - x)
    axis, size = granularity.get('axis', -2), granularity.get('group_size')
    low, high = (np.asarray(a) for a in quantize.group_range(
        jnp.asarray(x), axis=axis, group_size=size, per_tensor='per_tensor' in granularity, with_zero=False))
    wide = lambda a: quantize.spread(a, axis, x.shape[axis])
    ulps = np.float32(2**-21) * np.abs(x).max()
    self.assertTrue((error <= wide((high - low) / fmt.maximum) / 2 * 1.001 + ulps).all())
    at_ends = (x == wide(low)) | (x == wide(high))
    self.assertGreaterEqual(at_ends.sum(), 2)
    self.assertTrue((error[at_ends] <= ulps).all())

  def test_without_zero_in_range_a_constant_group_is_exact(self):
    x = jnp.asarray([[5.5, -0.3, 0.0, 1e-30, 3e37]] * 4, jnp.float32)
    np.testing.assert_array_equal(quantize.dequantize(quantize.quantize(x, formats.parse('offset_uint4'))), x)

  @parameterized.parameters(('int2', -2), ('uint4', -1), ('uint8', -2))
  def test_transformations_of_jax_do_not_change_it(self, name, axis):
    fmt = formats.parse(name)
    make = lambda x: quantize.quantize(x, fmt, axis=axis, group_size=3)
    x = _random(12, 15)
    q = make(x)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(make)(x), q)
    np.testing.assert_array_equal(jax.jit(quantize.dequantize)(q), quantize.dequantize(q))
    abstract = jax.eval_shape(make, x)
    self.assertEqual(abstract.shape, q.shape)
    self.assertEqual(
        jax.tree.map(lambda a: (a.shape, a.dtype), abstract), jax.tree.map(lambda a: (a.shape, a.dtype), q))
    # A leading axis, whether mapped over or simply there, is a stack of arrays.
    stack = jnp.stack([x, 2 * x])
    mapped, plain = jax.jit(jax.vmap(make))(stack), jax.jit(make)(stack)
    jax.tree.map(np.testing.assert_array_equal, mapped, plain)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda a: a[0], mapped), q)
    self.assertEqual(mapped.shape, stack.shape)

  def test_arithmetic_is_float32_whatever_the_input(self):
    x = _random(12, 15).astype(jnp.bfloat16)
    for name in ('int8', 'uint8'):
      q = quantize.quantize(x, formats.parse(name))
      jax.tree.map(np.testing.assert_array_equal, q, quantize.quantize(x.astype(jnp.float32), formats.parse(name)))
      self.assertEqual(quantize.dequantize(q, jnp.bfloat16).dtype, jnp.bfloat16)
      np.testing.assert_array_equal(
          quantize.dequantize(q, jnp.bfloat16), quantize.dequantize(q).astype(jnp.bfloat16))

  def test_ties_round_to_even_and_outliers_saturate(self):
    x = jnp.array([[0.5, 1.5, 2.5, -0.5, -1.5, 99.0, -99.0]])
    codes = lambda fmt, zero: quantize.encode(x, jnp.float32(1), zero, fmt).tolist()[0]
    self.assertEqual(codes(formats.IntFormat(4), None), [0, 2, 2, 0, -2, 7, -7])
    self.assertEqual(codes(formats.IntFormat(4, symmetric=False), jnp.uint8(3)), [3, 5, 5, 3, 1, 15, 0])

  def test_given_scales_are_used(self):
    x = _random(12, 15)
    scale = jnp.full((2, 15), 0.25)
    q = quantize.from_scales(x, scale, None, formats.IntFormat(8))
    np.testing.assert_array_equal(q.scale, scale)
    np.testing.assert_array_equal(q.unpacked(), np.clip(np.round(np.asarray(x) / 0.25), -127, 127))

  @parameterized.parameters(5, 0, -3, 24)
  def test_refuses_groups_that_do_not_divide(self, group_size):
    with self.assertRaisesRegex(errors.UserError, f'group size {group_size} does not divide 12 elements'):
      quantize.quantize(_random(12, 4), formats.IntFormat(4), group_size=group_size)
    with self.assertRaisesRegex(errors.UserError, 'layers/0/q: group size 5 does not divide 12'):
      quantize.group_count(12, 5, 'layers/0/q')

  @parameterized.product(shape=[(4, 8), (256, 64)], axis=[None, 0, 1])
  def test_extrema_are_those_of_numpy_and_keep_what_is_no_number(self, shape, axis):
    x = np.array(_random(*shape))
    np.testing.assert_array_equal(quantize.extrema(jnp.asarray(x), axis), (x.min(axis), x.max(axis)))
    x[1, 2] = np.nan
    np.testing.assert_array_equal(jax.jit(quantize.extrema, static_argnums=1)(x, axis), (x.min(axis), x.max(axis)))

  def test_refuses_groups_within_one_range(self):
    with self.assertRaisesRegex(errors.UserError, 'excludes groups of 4'):
      quantize.quantize(_random(12, 4), formats.IntFormat(4), group_size=4, per_tensor=True)


if __name__ == '__main__':
  absltest.main()
