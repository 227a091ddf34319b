"""Quantization of activations: the codes are those of the model's quantizers, whoever computes them."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import kernels
from kernels import activations
from kernels import before
from kernels import gates
from kernels.mosaic import activations as mosaic
from kernels.mosaic import configs
from kernels.mosaic import token_arithmetic
from kernels.mosaic import token_codes
from kernels.mosaic import token_loads
from kernels.mosaic import token_registers
from kernels.mosaic import token_transform
from jaxquant.numerics import formats
from jaxquant.numerics import quantizers
from tests import activation_cases
from tests import gpus
from tests import poisoning
from tests import interpreting

_COMBINED = {  # what the kernels' instructions make of arrays, extremes of any type in float32
    'sum': jnp.sum, 'min': lambda array: jnp.min(array).astype(jnp.float32),
    'max': lambda array: jnp.max(array).astype(jnp.float32),
    'magnitude': lambda array: jnp.max(jnp.abs(array)).astype(jnp.float32)}
_DEFAULTS = dict(bits=8, symmetric=True, before=kernels.Before(), static=None, group_size=None, packed=False)


def _lowered(x, options):
  """The kernel for whatever device it is lowered."""
  options = _DEFAULTS | options
  return mosaic.lowered(x, **options | {'group_size': options['group_size'] or before.features(
      options['before'], x.shape[-1])})


class XlaTest(activation_cases.ActivationCases):

  def quantize(self, x, options):
    return activation_cases.jitted(lambda x: kernels.quantize_activations(x, implementation='xla', **options))(x)

  @parameterized.product(bits=[4, 8], symmetric=[False, True], dtype=[jnp.bfloat16, jnp.float32])
  def test_codes_are_those_of_the_dynamic_quantizer(self, bits, symmetric, dtype):
    x = activation_cases.tokens(2, 5, 96, dtype=dtype)
    want = quantizers.DynamicQuantizer(formats.IntFormat(bits, symmetric)).codes(x)
    got = kernels.quantize_activations(x, bits=bits, symmetric=symmetric, implementation='xla')
    np.testing.assert_array_equal(got.codes, want.codes)
    np.testing.assert_array_equal(got.scale, want.scale)
    self.assertEqual(got.offset is None, symmetric)
    if not symmetric:
      np.testing.assert_array_equal(got.offset, want.offset)

  @parameterized.parameters(4, 8)
  def test_codes_on_a_static_range_are_those_of_the_static_quantizers(self, bits):
    x = activation_cases.tokens(2, 5, 96, dtype=jnp.float32)
    for quantizer in (quantizers.StepQuantizer(jnp.float32(0.03), bits),
                      quantizers.ClipQuantizer(jnp.float32(-1.5), jnp.float32(2), bits)):
      want = quantizer.codes(x)
      static = kernels.StaticRange(want.scale, want.offset)
      got = kernels.quantize_activations(x, bits=bits, static=static, implementation='xla')
      np.testing.assert_array_equal(got.codes, want.codes)
      self.assertIs(got.scale, want.scale)

  def test_packed_codes_lie_as_xla_stores_int4(self):
    codes = jnp.arange(-8, 8, dtype=jnp.int8)[::-1]
    packed = activations.pack(codes)
    self.assertEqual(int(packed[0]) & 255, (6 << 4) | 7)
    np.testing.assert_array_equal(activations.unpack(packed), codes)

  @parameterized.parameters(
      (dict(implementation='cuda'), ValueError, "unknown implementation 'cuda'; there are xla, mosaic_gpu"),
      (dict(bits=9), ValueError, 'bits must be an integer from 2 to 8 here, not 9'),
      (dict(packed=True), ValueError, 'at most 4 bits is packed, not 8 of 8 bits'),
      (dict(group_size=3), ValueError, 'groups of 3 do not divide 8 features'),
      (dict(static=kernels.StaticRange(np.ones(3))), ValueError, 'scalar scale'),
      (dict(group_size=2.0), ValueError, 'groups of 2.0 do not divide 8 features'),
      (dict(static=kernels.StaticRange(0.1)), ValueError, 'scale must be an array, not a float'),
      (dict(static=(jnp.float32(0.1), None)), ValueError, 'is a kernels.StaticRange, not a tuple'),
      (dict(before=kernels.Before(gain=np.ones(8))), ValueError, 'a gain and a bias belong to a norm'),
      (dict(before=kernels.Before(bias=np.ones(8))), ValueError, 'a gain and a bias belong to a norm'),
      (dict(before=kernels.Before(gate='relu')), ValueError, "unknown gate 'relu'; there is silu"),
      (dict(addend=np.ones((2, 4))), ValueError, r'float64 \[2, 4\] is not added to float32 \[2, 8\]'),
      (dict(before=kernels.Before(gate='silu')), ValueError, 'in pairs of runs of 8, not 8 of them'),
      (dict(before=kernels.Before(hadamard=2.0)), ValueError, 'power of two that divides 8, not of 2.0'),
      (dict(before=kernels.Before(norm='group')), ValueError, "unknown norm 'group'"),
      (dict(before=kernels.Before(hadamard=6)), ValueError, 'power of two that divides 8, not of 6'),
      (dict(before=kernels.Before(hadamard=16)), ValueError, 'power of two that divides 8, not of 16'),
      (dict(before=kernels.Before(shift=np.ones(3))), ValueError, r'shift of float64 \[3\] does not fit'),
      (dict(before=None), ValueError, 'what happens before is a kernels.Before, not a NoneType'),
      (dict(before=kernels.Before(norm='rms', epsilon='tiny')), ValueError, "is a number of at least 0, not 'tiny'"),
      (dict(before=kernels.Before(norm='rms', epsilon=-1.0)), ValueError, 'is a number of at least 0, not -1.0'),
      (dict(before=kernels.Before(norm='rms', epsilon=float('nan'))), ValueError, 'of at least 0, not nan'),
      (dict(before=kernels.Before(scale=np.ones(8, np.complex64))), ValueError, r'scale of complex64 \[8\] does not'),
      (dict(implementation='mosaic_gpu'), NotImplementedError, 'compute capability 9.0, and this is cpu'))
  def test_refuses(self, options, error, message):
    with self.assertRaisesRegex(error, message):
      kernels.quantize_activations(jnp.ones((2, 8)), **options)

  def test_nothing_is_added_behind_a_gate(self):
    x = jnp.ones((2, 16))
    with self.assertRaisesRegex(ValueError, 'is not added to .* behind a gate'):
      kernels.quantize_activations(x, addend=x, before=kernels.Before(gate='silu'))

  @parameterized.parameters(
      ([[1.0]],), (1.0,), (np.float32(2),), (np.ones(8, np.int32),), (np.ones((3, 0), np.float32),))
  def test_refuses_what_is_no_activation(self, x):
    with self.assertRaisesRegex(ValueError, 'must be'):
      kernels.quantize_activations(x)

  @parameterized.product(hadamard=[1, 4], packed=[False, True])
  def test_without_tokens_there_are_no_codes(self, hadamard, packed):
    got = kernels.quantize_activations(jnp.ones((2, 0, 8)), bits=4, before=kernels.Before(hadamard=hadamard),
                                       group_size=4, packed=packed)
    self.assertEqual([a.shape for a in got if a is not None], [(2, 0, 4 if packed else 8), (2, 0, 1), (2, 0, 2)])
    if packed:
      self.assertEqual(activations.unpack(got.codes).shape, (2, 0, 8))


@interpreting.needed
class InterpretTest(activation_cases.LikeXlaCases):
  """Interprets the kernel's body, but for what it does with single registers, which the interpreter does not know."""

  def quantize(self, x, options):
    known = mock.patch.multiple(
        token_registers, grouped=lambda codes, places, group_size: codes.reshape(-1, group_size),
        pack=lambda codes, places: activations.pack(codes.astype(jnp.int8)),
        keep=lambda values, places, ref: ref.__setitem__(..., values), kept=lambda places, ref: ref[...])
    loads = mock.patch.multiple(
        token_loads, fetch=lambda token: None, together=lambda values, others, places, token: values,
        half=lambda token, places, index: gates.halves(token[...])[index])
    transform = mock.patch.object(
        token_transform, 'rotated', lambda x, places, block, *scratch: before.rotated(x, block))
    alone = mock.patch.multiple(
        token_arithmetic, narrow=lambda values, dtype, places: values.astype(dtype),
        widened=lambda values, places: values.astype(jnp.float32),
        logistic=lambda values, layout: jax.lax.logistic(values),
        total=lambda values, power, *_: jnp.sum(values**power),
        combined=lambda arrays, kinds, *_: [_COMBINED[kind](array) for array, kind in zip(arrays, kinds)])
    # Else XLA, which fuses them into what is stored and into the sums, may round a code once one way and once another.
    once = mock.patch.object(
        token_codes, '_rounded', lambda values: jax.lax.optimization_barrier(values.view(jnp.int32)))
    with known, loads, transform, alone, once, interpreting.kernels():
      result = activations.QuantizedActivations(*_lowered(x, options))
    static = options.get('static')
    return result if static is None else result._replace(scale=static.scale, offset=static.offset)

  @parameterized.parameters('layer', 'channels', 'hadamard 64', 'gate, all')
  def test_many_tokens_in_turn(self, name):
    # As if there were one multiprocessor, whose blocks have 3 to 5 tokens each.
    given = activation_cases.given(activation_cases.CASES[name], 1024)
    with mock.patch.object(configs, 'CORES', 1):
      self.compare(activation_cases.tokens(39, given), activation_cases.arguments(activation_cases.CASES[name], 1024))


@gpus.needed
class MosaicTest(activation_cases.LikeXlaCases):

  def quantize(self, x, options):
    call = activation_cases.jitted(
        lambda x: kernels.quantize_activations(x, implementation='mosaic_gpu', **options))
    return poisoning.poisoned(call, x)

  @parameterized.product(
      name=['plain', 'affine packed groups', 'rms affine', 'layer static', 'all'], dtype=[jnp.bfloat16, jnp.float32],
      shape=[(2, 3, 4096), (70, 11008), (9, 768), (3, 14_336)])
  def test_tokens_of_models(self, name, dtype, shape):
    case = dict(activation_cases.CASES[name])
    if shape[-1] > mosaic.MOST_TRANSFORMED and {'norm', 'hadamard'} & set(case):
      self.skipTest('so long a token with a norm or a transform does not fit the registers, and XLA takes it')
    self.compare(activation_cases.tokens(*shape, dtype=dtype), activation_cases.arguments(case, shape[-1]))

  @parameterized.parameters(512, 1024, 2048, 4096)
  def test_transforms_across_warps_and_runs(self, block):
    case = {'hadamard': block, 'group_size': 2048}
    self.compare(activation_cases.tokens(200, 8192), activation_cases.arguments(case, 8192))

  @parameterized.parameters(((1, 11_008),), ((16, 14_336),), ((133, 11_008),))
  def test_gates_of_models(self, shape):
    rows, features = shape
    self.compare(activation_cases.tokens(rows, 2 * features), activation_cases.arguments({'gate': 'silu'}, features))

  @parameterized.parameters(1, 16, 200)
  def test_addends_of_models(self, rows):
    x, addend = (activation_cases.tokens(rows, 4096, seed=seed) for seed in range(2))
    options = activation_cases.arguments({'norm': 'rms'}, 4096)
    got, want = self.quantize(x, options | {'addend': addend}), self.quantize(x + addend, options)
    jax.tree.map(np.testing.assert_array_equal, got, want._replace(total=x + addend))

  @parameterized.parameters(('layer',), ('layer', 8192), ('channels',), ('rms affine',), ('hadamard 64',),
                            ('gate, all',), ('all', 8192))
  def test_many_tokens_in_turn_have_the_codes_of_few(self, name, features=4096):
    case = activation_cases.CASES[name]
    x = activation_cases.tokens(2500, activation_cases.given(case, features))
    options = activation_cases.arguments(case, features)
    want = [self.quantize(x[i : i + 125], options) for i in range(0, 2500, 125)]
    jax.tree.map(np.testing.assert_array_equal, self.quantize(x, options), jax.tree.map(
        lambda *parts: np.concatenate(parts), *want))

  @parameterized.parameters({'hadamard': 1024}, {'norm': 'layer'})
  def test_a_race_would_change_the_codes(self, **case):
    x = activation_cases.tokens(4096, 4096)
    options = activation_cases.arguments(case | {'symmetric': False, 'group_size': 128}, 4096)
    first, *others = (self.quantize(x, options) for _ in range(5))
    for other in others:
      jax.tree.map(np.testing.assert_array_equal, other, first)


class LoweringTest(parameterized.TestCase):

  def _lower(self, shape, options, dtype=jnp.bfloat16):
    call = jax.jit(lambda x: _lowered(x, options))
    return call.trace(jax.ShapeDtypeStruct(shape, dtype)).lower(lowering_platforms=('cuda',)).as_text()

  @parameterized.product(name=list(activation_cases.CASES), features=[512, 2048])
  def test_cases_for_cuda(self, name, features):
    options = activation_cases.arguments(activation_cases.CASES[name], features)
    given = activation_cases.given(activation_cases.CASES[name], features)
    self.assertIn('mosaic_gpu', self._lower((5, given), options))

  @parameterized.parameters(
      (4096, 'all'), (11_008, 'affine packed groups'), (14_336, 'plain'), (12_288, 'layer'), (16_384, 'affine'))
  def test_features_of_models_for_cuda(self, features, name):
    for dtype in (jnp.bfloat16, jnp.float32):
      options = activation_cases.arguments(activation_cases.CASES[name], features)
      self.assertIn('mosaic_gpu', self._lower((5, features), options, dtype))

  @parameterized.product(features=[4096, 11_008, 14_336], tokens=[1, 500], dtype=[jnp.bfloat16, jnp.float32])
  def test_gates_of_models_for_cuda(self, features, tokens, dtype):
    options = activation_cases.arguments({'gate': 'silu'}, features)
    text = self._lower((tokens, 2 * features), options, dtype)
    self.assertIn('mosaic_gpu', text)
    self.assertNotIn('stablehlo.exponential', text)

  @parameterized.product(name=['layer', 'channels', 'hadamard 64', 'gate, all'], features=[4096, 8192])
  def test_many_tokens_for_cuda(self, name, features):
    case = activation_cases.CASES[name]
    options = activation_cases.arguments(case, features)
    self.assertIn('mosaic_gpu', self._lower((8192, activation_cases.given(case, features)), options))

  @parameterized.parameters(1, 500)
  def test_addends_for_cuda(self, tokens):
    options = activation_cases.arguments({'norm': 'rms'}, 4096)
    options['addend'] = activation_cases.tokens(tokens, 4096)
    text = self._lower((tokens, 4096), options)
    self.assertIn('mosaic_gpu', text)
    self.assertNotIn('stablehlo.add', text)

  @parameterized.parameters(1024, 4096)
  def test_transforms_across_warps_and_runs_for_cuda(self, block):
    options = activation_cases.arguments({'hadamard': block, 'group_size': 2048}, 4096)
    self.assertIn('mosaic_gpu', self._lower((5, 4096), options))

  @parameterized.parameters(
      ((5, 250), jnp.bfloat16, {}, 'multiple of 256 features'), ((5, 256), jnp.int8, {}, 'not int8'),
      ((5, 16_640), jnp.bfloat16, {}, 'up to 16384'),
      ((5, 16_384), jnp.bfloat16, {'before': kernels.Before('rms')}, 'up to 12288'),
      ((5, 768), jnp.bfloat16, {'group_size': 192}, 'divide 256 features, or whole such runs, not of 192'),
      ((5, 4096), jnp.bfloat16, {'group_size': 4}, 'not of 4'))
  def test_what_it_does_not_take(self, shape, dtype, options, message):
    with self.assertRaisesRegex(NotImplementedError, message):
      jax.eval_shape(lambda x: _lowered(x, options), jax.ShapeDtypeStruct(shape, dtype))


if __name__ == '__main__':
  absltest.main()
