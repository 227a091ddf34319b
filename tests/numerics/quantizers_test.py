"""Quantizer nodes: codes and values agree, ranges are those of a NumPy reference, and stay valid."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.numerics import codes as codes_lib
from jaxquant.numerics import formats
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers
from jaxquant.numerics import rounding
from jaxquant.numerics import two_level


def _random(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _dynamic(name, **kwargs):
  return quantizers.DynamicQuantizer(formats.parse(name), **kwargs)


_QUANTIZERS = {
    'clip': lambda bits: quantizers.ClipQuantizer(jnp.float32(-1.1), jnp.float32(1.7), bits),
    'clip, zero aligned': lambda bits: quantizers.ClipQuantizer(jnp.float32(-1.1), jnp.float32(1.7), bits, True),
    'pact': lambda bits: quantizers.PactQuantizer(jnp.float32(1.5), bits),
    'pact, unsigned': lambda bits: quantizers.PactQuantizer(jnp.float32(1.5), bits, signed=False),
    'lsq': lambda bits: quantizers.StepQuantizer(jnp.float32(3.3 / 2**bits), bits),
    'token': lambda bits: _dynamic(f'int{bits}'),
    'asymmetric token': lambda bits: _dynamic(f'uint{bits}'),
    'groups': lambda bits: _dynamic(f'uint{bits}', group_size=4),
    'tensor': lambda bits: _dynamic(f'uint{bits}', per_tensor=True),
}
_LEARNED = tuple(_QUANTIZERS)[:5]
_call = jax.jit(lambda quantizer, x: quantizer(x))
_codes = jax.jit(lambda quantizer, x: quantizer.codes(x))


class InputQuantizersTest(parameterized.TestCase):

  @parameterized.product(kind=list(_QUANTIZERS), bits=[2, 4, 8])
  def test_values_are_those_that_the_codes_stand_for(self, kind, bits):
    quantizer = _QUANTIZERS[kind](bits)
    # Halves of steps too, where rounding turns on the last bit.
    x = np.concatenate([_random(10, 12), np.arange(-60, 60).reshape(10, 12) * 3.3 / 2**bits / 2]).astype(np.float32)
    values, codes = _call(quantizer, x), _codes(quantizer, x)
    np.testing.assert_allclose(values, codes_lib.values(codes), rtol=0, atol=1e-6)
    self.assertEqual((codes.codes.dtype, codes.bits, codes.scale.dtype), (jnp.int8, bits, jnp.float32))
    self.assertTrue((np.abs(np.asarray(codes.codes, int) + 0.5) <= 2 ** (bits - 1)).all())

  @parameterized.product(kind=list(_QUANTIZERS))
  def test_in_bfloat16_only_the_result_is_rounded(self, kind):
    quantizer = _QUANTIZERS[kind](4)
    x = _random(20, 12).astype(jnp.bfloat16)
    wide = x.astype(jnp.float32)
    self.assertEqual(_call(quantizer, x).dtype, jnp.bfloat16)
    np.testing.assert_array_equal(_call(quantizer, x), _call(quantizer, wide).astype(jnp.bfloat16))
    jax.tree.map(np.testing.assert_array_equal, _codes(quantizer, x), _codes(quantizer, wide))

  @parameterized.product(kind=list(_QUANTIZERS))
  def test_a_quantized_value_is_its_own(self, kind):
    once = _call(_QUANTIZERS[kind](4), _random(20, 12))
    np.testing.assert_allclose(_call(_QUANTIZERS[kind](4), once), once, rtol=0, atol=1e-6)

  @parameterized.product(kind=list(_LEARNED))
  def test_values_reach_the_ends_in_use_and_no_further(self, kind):
    quantizer = _QUANTIZERS[kind](4)
    values = _call(quantizer, _random(20, 12) * 9)
    np.testing.assert_allclose((values.min(), values.max()), quantizer.ends(), rtol=1e-6, atol=1e-6)

  def test_learned_quantizers_are_the_functions_of_rounding(self):
    x, ends = _random(20, 12), (jnp.float32(-1.1), jnp.float32(1.7))
    for kind, function in {
        'clip': lambda: rounding.clip_quantize(x, *ends, 4),
        'clip, zero aligned': lambda: rounding.clip_quantize(x, *rounding.align_zero(*ends, 4), 4),
        'pact': lambda: rounding.pact_quantize(x, jnp.float32(1.5), 4, True),
        'pact, unsigned': lambda: rounding.pact_quantize(x, jnp.float32(1.5), 4, False),
        'lsq': lambda: rounding.step_quantize(x, jnp.float32(3.3 / 16), -8, 7)}.items():
      np.testing.assert_allclose(
          _call(_QUANTIZERS[kind](4), x), jax.jit(function)(), rtol=0, atol=1e-6, err_msg=kind)

  def test_quantizers_differentiate_in_their_ranges(self):
    x = _random(20, 12)
    gradient_of = jax.jit(jax.grad(lambda quantizer: jnp.sum(quantizer(x) ** 2)))
    for kind in _LEARNED:
      with self.subTest(kind):
        gradient = gradient_of(_QUANTIZERS[kind](4))
        self.assertTrue(all(jnp.isfinite(leaf) and leaf != 0 for leaf in jax.tree.leaves(gradient)))

  @parameterized.product(kind=_LEARNED, bits=[1, 9, 16])
  def test_codes_that_no_int8_holds_are_refused(self, kind, bits):
    with self.assertRaisesRegex(errors.UserError, f'^integer formats have 2 to 8 bits, not {bits}$'):
      _QUANTIZERS[kind](bits)


class DynamicQuantizerTest(parameterized.TestCase):

  @parameterized.product(
      name=['int4', 'uint8'],
      granularity=[dict(), dict(group_size=4), dict(group_size=1), dict(per_tensor=True)])
  def test_ranges_are_those_of_a_numpy_reference(self, name, granularity):
    fmt, x = formats.parse(name), _random(3, 5, 8, seed=2)
    groups = np.asarray(x, np.float64)
    size = granularity.get('group_size', 8)
    groups = groups.reshape(1, -1) if 'per_tensor' in granularity else groups.reshape(-1, size)
    low, high = np.minimum(groups.min(1), 0), np.maximum(groups.max(1), 0)
    scale = np.maximum(-low, high) / fmt.maximum if fmt.symmetric else (high - low) / fmt.maximum
    zero_point = 0 * scale if fmt.symmetric else np.round(-low / scale)
    codes = np.clip(np.round(groups / scale[:, None]) + zero_point[:, None], fmt.minimum, fmt.maximum)
    want = ((codes - zero_point[:, None]) * scale[:, None]).reshape(x.shape)
    quantizer = _dynamic(name, **granularity)
    np.testing.assert_allclose(_call(quantizer, x), want, rtol=0, atol=1e-6)
    shift = 0 if fmt.symmetric else 2 ** (fmt.bits - 1)
    np.testing.assert_array_equal(_codes(quantizer, x).codes, codes.reshape(x.shape) - shift)
    self.assertEqual(_codes(quantizer, x).offset is None, fmt.symmetric)

  def test_a_token_does_not_depend_on_the_others(self):
    x = _random(20, 12)
    for kind in ('token', 'asymmetric token', 'groups'):
      quantizer = _QUANTIZERS[kind](4)
      np.testing.assert_array_equal(_call(quantizer, x)[3:7], _call(quantizer, x.at[7:].multiply(9))[3:7])

  @parameterized.parameters('int4', 'uint4')
  def test_an_all_zero_token_stays_zero(self, name):
    x = jnp.zeros((2, 8)).at[1].set(3.0)
    np.testing.assert_allclose(_call(_dynamic(name), x), x, rtol=1e-6)
    np.testing.assert_array_equal(_call(_dynamic(name), x)[0], 0)

  @parameterized.parameters('dint4', 'offset_uint8')
  def test_formats_of_weights_are_refused(self, name):
    with self.assertRaisesRegex(errors.UserError, fr'activations take integer formats \(formats.parse\), not {name}'):
      _dynamic(name)

  def test_names_of_formats_are_no_formats(self):
    for kind in (quantizers.DynamicQuantizer, quantizers.WeightQuantizer):
      with self.assertRaisesRegex(errors.UserError, r"\(formats.parse\), not 'int4'$"):
        kind('int4')

  def test_gradient_is_one(self):
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(_dynamic('uint4')(x))))
    np.testing.assert_array_equal(gradient(_random(3, 8)), 1)

  def test_refuses_groups_that_do_not_divide_or_within_one_range(self):
    with self.assertRaisesRegex(errors.UserError, 'group size 3 does not divide 8'):
      _dynamic('int4', group_size=3)(_random(2, 8))
    with self.assertRaisesRegex(errors.UserError, 'excludes groups of 4'):
      _dynamic('int4', group_size=4, per_tensor=True)(_random(2, 8))


class ProjectionTest(parameterized.TestCase):

  @parameterized.parameters((1.0, -1.0), (0.0, 0.0), (100.0, 100.0), (-3e4, -3e4), (2e6, 1e6), (1.0, 1.0))
  def test_a_range_that_closed_is_opened_around_its_middle(self, low, high):
    quantizer = quantizers.ClipQuantizer(jnp.float32(low), jnp.float32(high), 4, True).projected()
    self.assertLess(quantizer.low, quantizer.high)
    np.testing.assert_allclose((quantizer.low + quantizer.high) / 2, (low + high) / 2, rtol=1e-6, atol=1e-6)
    self.assertLess(quantizer.high - quantizer.low, 3e-6 * max(1, abs(low), abs(high)))
    self.assertEqual((quantizer.bits, quantizer.align_zero), (4, True))
    self.assertTrue(np.isfinite(quantizer(jnp.array([low, high, 0.0]))).all())

  @parameterized.parameters((-1.1, 1.7), (0.0, 1e-5), (99.0, 99.1), (-1e-3, 0.3))
  def test_an_open_range_keeps_its_bits(self, low, high):
    quantizer = quantizers.ClipQuantizer(jnp.float32(low), jnp.float32(high), 4)
    jax.tree.map(np.testing.assert_array_equal, quantizer.projected(), quantizer)

  @parameterized.parameters(quantizers.PactQuantizer, quantizers.StepQuantizer)
  def test_one_parameter_becomes_positive_or_keeps_its_bits(self, kind):
    for value in (-1.0, 0.0, 0.3):
      before = kind(jnp.float32(value), 4)
      after = before.projected()
      self.assertGreater(jax.tree.leaves(after)[0], 0)
      self.assertTrue(np.isfinite(after(jnp.array([-1.0, 0.0, 1.0]))).all())
      if value > 0:
        jax.tree.map(np.testing.assert_array_equal, after, before)

  def test_dynamic_ranges_have_nothing_to_project(self):
    self.assertEqual(_dynamic('int4', group_size=4).projected(), _dynamic('int4', group_size=4))


class WeightQuantizerTest(parameterized.TestCase):

  @parameterized.parameters(
      ('int4', -2, None), ('int2', -1, 4), ('uint3', -2, 4), ('uint8', -1, None), ('full_int4', -2, 6),
      ('dint4', -2, 4), ('offset_uint3', -1, 2))
  def test_equals_quantizing_and_dequantizing_with_gradient_one(self, name, axis, group_size):
    kernel = _random(12, 8)
    quantizer = quantizers.WeightQuantizer(formats.parse(name), axis=axis, group_size=group_size)
    rounded = jax.jit(lambda k: quantize.quantize(k, quantizer.format, axis=axis, group_size=group_size))(kernel)
    values, pullback = jax.vjp(jax.jit(quantizer.__call__), kernel)
    np.testing.assert_array_equal(values, jax.jit(quantize.dequantize)(rounded))
    cotangent = _random(12, 8, seed=1)
    np.testing.assert_array_equal(pullback(cotangent)[0], cotangent)

  @parameterized.parameters('int4', 'full_int4', 'int3', 'int2')
  def test_two_levels_change_scales_alone_and_training_sees_the_same_values(self, name):
    kernel = _random(32, 10) * np.float32([0.1, 1, 0, 3]).repeat(8)[:, None]
    kernel = kernel.at[:, 4].set(0)
    plain = quantizers.WeightQuantizer(formats.parse(name), group_size=8)
    quantizer = dataclasses.replace(plain, two_level=True)
    rounded, want = jax.jit(quantizer.quantized)(kernel), jax.jit(plain.quantized)(kernel)
    self.assertEqual(jax.tree.structure(rounded), jax.tree.structure(want))
    self.assertIsNotNone(two_level.levels(rounded.scale))
    self.assertIsNone(two_level.levels(want.scale))
    codes = quantize.from_scales(kernel, rounded.scale, None, plain.format)
    np.testing.assert_array_equal(rounded.codes, codes.codes)
    values, pullback = jax.vjp(jax.jit(quantizer.__call__), kernel)
    np.testing.assert_array_equal(values, jax.jit(quantize.dequantize)(rounded))
    np.testing.assert_array_equal(pullback(kernel)[0], kernel)
    zeros = np.asarray(values)[np.asarray(kernel) == 0]
    self.assertLen(zeros, 8 * 10 + 24)
    np.testing.assert_array_equal(zeros, 0)

  @parameterized.parameters(
      ('int8', {}, 'symmetric integers of at most 4 bits, not int8'), ('uint4', {}, 'at most 4 bits, not uint4'),
      ('dint3', {}, 'at most 4 bits, not dint3'), ('int4', {'group_size': None}, 'there is no group size'),
      ('int4', {'axis': -1}, 'scales of each input channel'))
  def test_two_levels_are_for_groups_of_inputs_of_narrow_symmetric_codes(self, name, options, message):
    with self.assertRaisesRegex(errors.UserError, f'^two-level scales are .*{message}$'):
      quantizers.WeightQuantizer(formats.parse(name), **{'group_size': 8, **options}, two_level=True)

  def test_a_group_size_that_does_not_divide_is_refused_by_path(self):
    quantizer = quantizers.WeightQuantizer(formats.IntFormat(4), group_size=5)
    quantizer.check((10, 3), 'layers/0/mlp/up')
    with self.assertRaisesRegex(errors.UserError, 'layers/0/mlp/up: group size 5 does not divide 12 elements'):
      quantizer.check((12, 3), 'layers/0/mlp/up')


class ValuesTest(absltest.TestCase):

  def test_scales_of_groups_are_spread_over_their_features(self):
    codes = codes_lib.Codes(
        jnp.array([[1, 2, 3, 4]], jnp.int8), jnp.array([[2.0, 10.0]]), jnp.array([[0.5, -1.0]]), 8)
    np.testing.assert_array_equal(codes_lib.values(codes), [[2.5, 4.5, 29, 39]])


if __name__ == '__main__':
  absltest.main()
