"""dINT formats: the value set, rounding to the nearest of it, errors against integers, storage and description."""

import json

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.numerics import formats
from jaxquant.numerics import nodes
from jaxquant.numerics import packing
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees

_NAMES = ('dint3', 'dint4', 'dint8', 'dint3/4', 'dint4/4', 'dint4/8', 'dint8/8')
_TINY = float(np.finfo(np.float32).tiny)
_quantize = jax.jit(quantize.quantize, static_argnames=('fmt', 'axis', 'group_size', 'per_tensor'))
_dequantize = jax.jit(quantize.dequantize)
_rounded = jax.jit(
    lambda x, name: quantize.dequantize(quantize.quantize(x, formats.parse(name))), static_argnames='name')


def _random(*shape, seed=0, freedom=4):
  """Float32 numbers with the heavy tails of Student's t."""
  return jnp.asarray(np.random.default_rng(seed).standard_t(freedom, size=shape), jnp.float32)


def _value_set(fmt, zero_point):
  """The values of all codes in units of the scale, by code: float64 [2^bits]."""
  return np.concatenate([np.arange(fmt.maximum + 1) - float(zero_point), [fmt.special, -fmt.special]])


class FormatTest(parameterized.TestCase):

  @parameterized.parameters(*_NAMES)
  def test_all_bits_are_codes_and_the_name_is_read_back(self, name):
    fmt = formats.parse(name)
    self.assertEqual((fmt.name, formats.parse(fmt.name)), (name, fmt))
    self.assertEqual((fmt.minimum, fmt.minus), (0, 2**fmt.bits - 1))
    self.assertEqual((fmt.plus, fmt.maximum), (2**fmt.bits - 2, 2**fmt.bits - 3))
    self.assertEqual((fmt.symmetric, fmt.dtype, fmt.storage_bits), (False, jnp.uint8, {3: 4}.get(fmt.bits, fmt.bits)))

  @parameterized.product(bits=[3, 4, 8], special=[0.5, 0.25, 0.125])
  def test_bits_of_multiples_hold_the_farthest_code_from_its_zero_point(self, bits, special):
    fmt = formats.DIntFormat(bits, special)
    largest = max(abs(int(quantize.multiples(jnp.uint8(code), jnp.uint8(zero), fmt)))
                  for code, zero in ((0, fmt.maximum), (fmt.maximum, 0)))
    self.assertEqual(largest, fmt.maximum / special)
    self.assertBetween(largest, 2 ** (fmt.multiple_bits - 2), 2 ** (fmt.multiple_bits - 1) - 1)

  @parameterized.parameters('dint2', 'dint5', 'dint16', 'dint4/2', 'dint4/16', 'dint4/', 'udint4', 'dint')
  def test_refuses_names_that_are_no_format(self, name):
    with self.assertRaisesRegex(errors.UserError, f"unknown number format '{name}'; .* dint3, dint4 and dint8"):
      formats.parse(name)

  def test_refuses_other_widths_and_special_values(self):
    with self.assertRaisesRegex(errors.UserError, '^dINT formats have 3, 4 or 8 bits, not 5$'):
      formats.DIntFormat(5)
    for special in (1, 0.3, 1 / 16, 0):
      with self.assertRaisesRegex(errors.UserError, f'1/2, 1/4 or 1/8 of a step, not {special}$'):
        formats.DIntFormat(4, special)


class ValuesTest(parameterized.TestCase):

  @parameterized.parameters(*_NAMES)
  def test_every_value_is_the_value_of_its_code(self, name):
    fmt = formats.parse(name)
    for zero_point in {0, 1, fmt.maximum // 2, fmt.maximum}:
      for scale in (0.25, 0.37, 1e-3, 3e4):
        scale, zero = jnp.float32(scale), jnp.uint8(zero_point)
        codes = jnp.arange(2**fmt.bits).astype(fmt.dtype)
        values = quantize.decode(codes, scale, zero, fmt)
        np.testing.assert_array_equal(values, (_value_set(fmt, zero_point) * float(scale)).astype(np.float32))
        again = quantize.encode(values, scale, zero, fmt)
        np.testing.assert_array_equal(quantize.decode(again, scale, zero, fmt), values)
        np.testing.assert_array_equal(again, codes)

  def test_example_of_a_group(self):
    # In units of the step, where every tie is one: 2.5 is rounded to even.
    x = jnp.float32([-5, -0.8, -0.7, -0.45, -0.2, 0.2, 0.3, 0.7, 0.8, 2.5, 8])[:, None]
    want = np.float32([-5, -1, -0.5, -0.5, 0, 0, 0.5, 0.5, 1, 2, 8])[:, None]
    q = _quantize(x, formats.parse('dint4'))
    self.assertEqual((q.scale.item(), q.zero_point.item()), (1.0, 5))
    np.testing.assert_array_equal(_dequantize(q), want)
    q = _quantize(x / 5, formats.parse('dint4'))
    self.assertEqual(q.zero_point.item(), 5)
    np.testing.assert_allclose(q.scale, 0.2, rtol=1e-6)
    self.assertEqual(np.asarray(q.unpacked())[[1, 2, 4, 6]].ravel().tolist(), [4, 15, 5, 14])

  @parameterized.parameters(('dint4', 0.25, 0.75), ('dint3/4', 0.125, 0.625), ('dint8/8', 0.0625, 0.5625))
  def test_intervals_of_special_codes_are_half_open(self, name, near, far):
    fmt = formats.parse(name)
    zero = 2
    above = lambda x: np.nextafter(np.float32(x), np.float32(9))
    x = jnp.float32([near, above(near), far, above(far), -near, -above(near), -far, -above(far)])
    codes = quantize.encode(x, jnp.float32(1), jnp.uint8(zero), fmt).tolist()
    self.assertEqual(codes, [zero, fmt.plus, fmt.plus, zero + 1, zero, fmt.minus, fmt.minus, zero - 1])

  @parameterized.product(name=_NAMES, shift=[0.0, 3.0, -3.0, 30.0, -30.0])
  def test_every_value_within_a_range_gets_the_nearest_of_the_set(self, name, shift):
    x = _random(64, 40) + shift * jnp.arange(40) / 40  # from both signs to one
    q = _quantize(x, formats.parse(name), group_size=32)
    spread = lambda a: np.repeat(np.asarray(a, np.float64), 32, 0)
    steps = np.asarray(x, np.float64) / spread(q.scale)
    got = np.asarray(_dequantize(q), np.float64) / spread(q.scale)
    of_codes = np.arange(q.format.maximum + 1) - spread(q.zero_point)[..., None]
    special = np.broadcast_to([q.format.special, -q.format.special], (*steps.shape, 2))
    nearest = np.abs(np.concatenate([of_codes, special], -1) - steps[..., None]).min(-1)
    np.testing.assert_allclose(np.abs(got - steps), nearest, rtol=0, atol=1e-4)

  def test_beyond_a_range_that_ends_at_zero_values_saturate_to_zero(self):
    fmt = formats.parse('dint4')
    x = jnp.float32([0.7, 0.8, 3, -0.7, -0.8])
    values = lambda zero: quantize.decode(quantize.encode(x, jnp.float32(1), zero, fmt), jnp.float32(1), zero, fmt)
    np.testing.assert_array_equal(values(jnp.uint8(13)), [0.5, 0, 0, -0.5, -1])
    np.testing.assert_array_equal(values(jnp.uint8(0)), [0.5, 1, 3, -0.5, 0])

  @parameterized.parameters(*_NAMES)
  def test_degenerate_groups(self, name):
    fmt = formats.parse(name)
    columns = {
        'zero': np.zeros(4), 'constant': np.full(4, 5.5), 'negative': np.full(4, -0.3),
        'positive': np.linspace(5, 6, 4), 'below zero': np.array([-4, -0.03, -2, -1]),
        'huge': np.array([8e37, -8e37, 0, 2e37]), 'small': np.array([2e-38, -2e-38, 0, 2e-38]),
        'subnormal': np.full(4, 1e-40)}
    q = _quantize(jnp.asarray(np.stack(list(columns.values()), 1), jnp.float32), fmt)
    got = dict(zip(columns, np.asarray(_dequantize(q), np.float64).T))
    scales = dict(zip(columns, np.asarray(q.scale)[0].tolist()))
    self.assertEqual(scales['zero'], 1.0)
    np.testing.assert_array_equal(got['zero'], 0)
    # One-signed groups are exact at their largest magnitude, to a unit in the last place.
    np.testing.assert_allclose(got['constant'], 5.5, rtol=2e-7)
    np.testing.assert_allclose(got['negative'], -0.3, rtol=2e-7)
    np.testing.assert_allclose([got['positive'][-1], got['below zero'][0]], [6, -4], rtol=2e-7)
    for column in ('positive', 'below zero', 'huge'):
      np.testing.assert_array_less(np.abs(got[column] - columns[column]), scales[column] * 0.5001)
    # The special value stays a normal number, so that halves of a tiny scale are not flushed to zero.
    for column in ('small', 'subnormal'):
      self.assertGreaterEqual(scales[column] * fmt.special, _TINY)
      np.testing.assert_array_less(np.abs(got[column] - columns[column]), 0.5001 * scales[column])

  @parameterized.parameters(('dint3', None), ('dint4/4', 6), ('dint8', 4))
  def test_quantizing_again_with_the_same_scales_changes_nothing(self, name, group_size):
    q = _quantize(_random(12, 15), formats.parse(name), group_size=group_size)
    again = quantize.from_scales(_dequantize(q), q.scale, q.zero_point, q.format)
    np.testing.assert_array_equal(again.codes, q.codes)

  @parameterized.parameters(('dint3', -2), ('dint4/8', -1), ('dint8', -2))
  def test_transformations_of_jax_do_not_change_it(self, name, axis):
    fmt, x = formats.parse(name), _random(12, 15)
    make = lambda x: quantize.quantize(x, fmt, axis=axis, group_size=3)
    q = make(x)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(make)(x), q)
    np.testing.assert_array_equal(_dequantize(q), quantize.dequantize(q))
    stack = jax.jit(jax.vmap(make))(jnp.stack([x, 2 * x]))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b), stack, q)
    np.testing.assert_array_equal(_dequantize(q.transposed()), quantize.dequantize(q).T)


class ErrorTest(parameterized.TestCase):

  def _mean_squared_errors(self, x, *names):
    x = jnp.asarray(x, jnp.float32)
    return [float(jnp.mean((_rounded(x, name) - x) ** 2)) for name in names]

  def test_wider_steps_lose_on_short_groups_of_normal_numbers(self):
    x = np.random.default_rng(0).normal(size=(128, 20_000))
    integer, dint = self._mean_squared_errors(x, 'uint4', 'dint4')
    np.testing.assert_allclose([integer, dint], [0.01051, 0.01057], rtol=0.05)
    self.assertBetween(dint / integer, 1.003, 1.02)

  def test_special_values_win_on_long_rows_and_heavy_tails(self):
    rng = np.random.default_rng(0)
    integer, dint = self._mean_squared_errors(rng.normal(size=(4096, 500)), 'uint4', 'dint4')
    np.testing.assert_allclose([integer, dint], [0.0194, 0.0176], rtol=0.02)
    integer, dint = self._mean_squared_errors(rng.standard_t(4, size=(4096, 500)), 'uint4', 'dint4')
    np.testing.assert_allclose([integer, dint], [0.254, 0.116], rtol=0.15)  # its fourth moment is infinite

  @parameterized.product(name=['uint3', 'uint4', 'uint8'], freedom=[4, 1000])
  def test_fewer_weights_become_zero(self, name, freedom):
    x = _random(1024, 64, freedom=freedom)
    zeros = [float(jnp.mean(_rounded(x, kind) == 0)) for kind in (name, f'd{name[1:]}', f'd{name[1:]}/4')]
    self.assertLess(zeros[1], 0.9 * zeros[0])
    self.assertLess(zeros[2], 0.9 * zeros[1])


class StorageTest(parameterized.TestCase):

  @parameterized.product(name=['dint3', 'dint4', 'dint8'], axis=[-1, -2], size=[5, 8])
  def test_every_code_comes_back_packed(self, name, axis, size):
    fmt = formats.parse(name)
    codes = (np.arange(size)[:, None] + np.arange(256)) % 2**fmt.bits
    codes = np.moveaxis(np.stack([codes, codes[::-1]]).astype(fmt.dtype), 1, axis)
    packed = packing.pack(jnp.asarray(codes), fmt, axis)
    unpacked = packing.unpack(packed, fmt, axis, size)
    self.assertEqual(packed.shape[axis], size if fmt.bits == 8 else (size + 1) // 2)
    self.assertEqual((packed.dtype, unpacked.dtype), (jnp.uint8, jnp.uint8))
    np.testing.assert_array_equal(unpacked, codes)

  @parameterized.parameters('dint3/8', 'dint4', 'dint8/4')
  def test_a_tree_is_rebuilt_from_json_and_arrays(self, name):
    fmt = formats.parse(name)
    tree = {'q': {'kernel': _quantize(_random(12, 6), fmt, group_size=4)},
            'k': {'kernel': _random(4, 4), 'kernel_quantizer': quantizers.WeightQuantizer(fmt, group_size=2)}}
    saved = trees.arrays(tree)
    rebuilt = nodes.decode(json.loads(json.dumps(nodes.encode(tree))), lambda path, _: saved[path])
    self.assertEqual(jax.tree.structure(rebuilt), jax.tree.structure(tree))
    np.testing.assert_array_equal(
        _dequantize(rebuilt['q']['kernel']), _dequantize(tree['q']['kernel']))

  def test_in_training_weights_are_what_they_will_be(self):
    x, quantizer = _random(12, 6), quantizers.WeightQuantizer(formats.parse('dint4'), group_size=4)
    np.testing.assert_array_equal(quantizer(x), quantize.dequantize(quantizer.quantized(x)))
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(quantizer(x) * 3))(x), 3)

  def test_activations_take_no_such_codes(self):
    with self.assertRaisesRegex(errors.UserError, '^activations take integer formats .*, not dint4$'):
      quantizers.DynamicQuantizer(formats.parse('dint4'))


if __name__ == '__main__':
  absltest.main()
