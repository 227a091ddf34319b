"""The one evaluator: every make of kernel with every make of activation, and what each refuses or differentiates as."""

import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import kernels
from jaxquant.layers import inputs
from jaxquant.layers import linear
from jaxquant.numerics import formats
from jaxquant.numerics import packing
from jaxquant.numerics import qtensor
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers
from tests import networks

_INPUTS, _OUTPUTS = 16, 6
_QUANTIZERS = {
    'clip': quantizers.ClipQuantizer(jnp.float32(-1.5), jnp.float32(2), 4),
    'pact': quantizers.PactQuantizer(jnp.float32(1.7), 8),
    'lsq': quantizers.StepQuantizer(jnp.float32(0.25), 4),
    'per token': quantizers.DynamicQuantizer(formats.parse('uint8')),
    'per group': quantizers.DynamicQuantizer(formats.parse('int4'), group_size=4),
    'per tensor': quantizers.DynamicQuantizer(formats.parse('int8'), per_tensor=True),
}


_linear = networks.quick_jit(linear.linear, static_argnames=('implementation', 'transpose'))
_embed = networks.quick_jit(linear.embed, static_argnames='dtype')
_quantize = networks.quick_jit(quantize.quantize, static_argnames=('fmt', 'axis', 'group_size'))
_dequantize = networks.quick_jit(quantize.dequantize)
_values = networks.quick_jit(lambda quantizer, x: quantizer(x))


def _random(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@functools.cache
def _kernel(name: str = 'int4', group_size: int | None = None, axis: int = -2):
  return _quantize(_random(_INPUTS, _OUTPUTS, seed=1), formats.parse(name), group_size=group_size, axis=axis)


def _product(x, kernel, bias=0.0):
  """The product of the values of a kernel, as float64."""
  return np.asarray(x, np.float64) @ np.asarray(_dequantize(kernel), np.float64) + np.asarray(bias)


class ValuesTest(parameterized.TestCase):

  def test_float_kernel_with_float_activation(self):
    x, kernel, bias = _random(2, 3, _INPUTS), _random(_INPUTS, _OUTPUTS, seed=1), _random(_OUTPUTS, seed=2)
    want = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    np.testing.assert_allclose(_linear({'kernel': kernel}, x), want, atol=1e-5)
    np.testing.assert_allclose(_linear({'kernel': kernel, 'bias': bias}, x), want + bias, atol=1e-5)

  @parameterized.product(name=['int2', 'uint4', 'offset_uint4', 'int8', 'dint4'], groups=[(None, -2), (2, -1)])
  def test_integer_kernel_with_float_activation(self, name, groups):
    x, kernel, bias = _random(2, 3, _INPUTS), _kernel(name, *groups), _random(_OUTPUTS, seed=2)
    y = _linear({'kernel': kernel, 'bias': bias}, x)
    np.testing.assert_allclose(y, _product(x, kernel, bias), atol=1e-5)

  @parameterized.parameters(
      *((name, ('uint8', 4)) for name in _QUANTIZERS), *((name, ('dint4', 4)) for name in _QUANTIZERS),
      *((name, ('offset_uint4', 4)) for name in _QUANTIZERS), ('clip', ('int4', None)), ('clip', ('dint8/8', None)))
  def test_integer_kernel_with_quantized_activation(self, quantizer, kernel):
    quantizer, kernel = _QUANTIZERS[quantizer], _kernel(*kernel)
    x, bias = _random(2, 3, _INPUTS), _random(_OUTPUTS, seed=2)
    y = _linear({'kernel': kernel, 'bias': bias, 'input': {'quantizer': quantizer}}, x)
    np.testing.assert_allclose(y, _product(_values(quantizer, x), kernel, bias), rtol=1e-5, atol=2e-5)

  @parameterized.product(
      name=['dint3', 'dint4', 'dint4/8', 'dint8', 'dint8/8'], group_size=[None, 4],
      implementation=list(kernels.IMPLEMENTATIONS))
  def test_dint_kernels_meet_codes_in_whole_multiples_of_the_special_value(self, name, group_size, implementation):
    fmt, rng = formats.parse(name), np.random.default_rng(0)
    groups = 1 if group_size is None else _INPUTS // group_size
    kernel = qtensor.QTensor(
        packing.pack(jnp.asarray(rng.integers(0, 2**fmt.bits, (_INPUTS, 40)), fmt.dtype), fmt, -2),
        jnp.asarray(2.0 ** rng.integers(-6, 3, (groups, 40)), jnp.float32),
        jnp.asarray(rng.integers(0, fmt.maximum + 1, (groups, 40)), jnp.uint8), fmt, -2, _INPUTS)
    x = jnp.asarray(rng.integers(-128, 128, (3, _INPUTS)) / 4, jnp.float32)
    y = _linear({'kernel': kernel, 'input': {'quantizer': quantizers.StepQuantizer(jnp.float32(0.25), 8)}}, x,
                implementation=implementation)
    # With scales that are powers of two, float arithmetic is exact too.
    self.assertContainsSubset({fmt.plus, fmt.minus}, set(np.asarray(kernel.unpacked()).ravel().tolist()))
    np.testing.assert_array_equal(y, _product(x, kernel))
    np.testing.assert_array_equal(y, _linear({'kernel': kernel}, x))

  @parameterized.product(name=['dint4', 'dint8/8'], implementation=list(kernels.IMPLEMENTATIONS))
  def test_long_sums_of_dint_kernels_are_exact(self, name, implementation):
    # The farthest codes of one sign and odd activations: digits are lost wherever float32 adds them past 2^24.
    fmt, inputs, rng = formats.parse(name), 8000, np.random.default_rng(0)
    codes = rng.choice([fmt.maximum, fmt.maximum - 1, fmt.plus], (inputs, 6)).astype(fmt.dtype)
    kernel = qtensor.QTensor(packing.pack(jnp.asarray(codes), fmt, -2), jnp.full((1, 6), 1 / fmt.resolution),
                             jnp.zeros((1, 6), jnp.uint8), fmt, -2, inputs)
    x = jnp.asarray(rng.choice([125, 127], (3, inputs)), jnp.float32)
    y = _linear({'kernel': kernel, 'input': {'quantizer': quantizers.StepQuantizer(jnp.float32(1), 8)}}, x,
                implementation=implementation)
    np.testing.assert_array_equal(y, _product(x, kernel).astype(np.float32))

  @parameterized.product(name=['dint4', 'dint8'], implementation=list(kernels.IMPLEMENTATIONS))
  def test_dint_products_are_the_scaled_sums_of_integers(self, name, implementation):
    kernel, step = _kernel(name), jnp.float32(0.03)
    x = _random(5, _INPUTS)
    codes = quantizers.StepQuantizer(step, 8).codes(x).codes
    values, half = np.asarray(_dequantize(kernel), np.float64), np.asarray(kernel.scale, np.float64) / 2
    sums = np.asarray(codes, np.int64) @ np.round(values / half).astype(np.int64)
    want = sums.astype(np.float32) * step * half.astype(np.float32)
    y = _linear({'kernel': kernel, 'input': {'quantizer': quantizers.StepQuantizer(step, 8)}}, x,
                implementation=implementation)
    np.testing.assert_array_equal(y, want)

  @parameterized.parameters(*_QUANTIZERS)
  def test_float_kernel_with_quantized_activation(self, name):
    x, kernel = _random(2, 3, _INPUTS), _random(_INPUTS, _OUTPUTS, seed=1)
    y = _linear({'kernel': kernel, 'input': {'quantizer': _QUANTIZERS[name]}}, x)
    want = np.asarray(_values(_QUANTIZERS[name], x), np.float64) @ np.asarray(kernel, np.float64)
    np.testing.assert_allclose(y, want, atol=1e-5)

  @parameterized.parameters(('float', None), ('int4', None), ('int4', 'clip'))
  def test_result_has_the_dtype_of_the_activation(self, name, quantizer):
    kernel = _random(_INPUTS, _OUTPUTS, seed=1) if name == 'float' else _kernel(name)
    layer = {'kernel': kernel, 'bias': _random(_OUTPUTS)}
    layer |= {'input': {'quantizer': _QUANTIZERS[quantizer]}} if quantizer else {}
    x = _random(3, _INPUTS).astype(jnp.bfloat16)
    y = _linear(layer, x)
    self.assertEqual(y.dtype, jnp.bfloat16)
    np.testing.assert_allclose(np.float32(y), _linear(layer, x.astype(jnp.float32)), rtol=0.02, atol=0.05)

  @parameterized.product(transpose=[False, True], quantizer=[None, 'clip'])
  def test_scales_of_the_kernel_transposed_or_not(self, transpose, quantizer):
    kernel = _kernel('uint4', 4)
    layer = {'kernel': kernel.transposed() if transpose else kernel}
    layer |= {'input': {'quantizer': _QUANTIZERS[quantizer]}} if quantizer else {}
    x = _random(3, _INPUTS)
    y = _linear(layer, x, transpose=transpose)
    np.testing.assert_allclose(y, _product(_values(_QUANTIZERS[quantizer], x) if quantizer else x, kernel), atol=2e-5)

  def test_transposed_float_kernel(self):
    x, kernel = _random(3, _INPUTS), _random(_INPUTS, _OUTPUTS, seed=1)
    y = _linear({'kernel': kernel.T}, x, transpose=True)
    np.testing.assert_allclose(y, _linear({'kernel': kernel}, x), atol=1e-6)

  @parameterized.parameters('simulated', 'xla')
  def test_scales_per_input_channel_cannot_meet_integer_activations(self, implementation):
    layer = {'kernel': _kernel(axis=-1), 'input': {'quantizer': _QUANTIZERS['clip']}}
    with self.assertRaisesRegex(ValueError, 'per input channel cannot meet integer .* vary along the contraction'):
      _linear(layer, _random(3, _INPUTS), implementation=implementation)

  def test_refuses_an_implementation_that_there_is_not(self):
    with self.assertRaisesRegex(ValueError, "unknown implementation 'nonsense'; there are simulated, xla, mosaic_gpu"):
      linear.linear({'kernel': _kernel()}, _random(3, _INPUTS), implementation='nonsense')

  def test_site_that_several_layers_share_equals_an_input_of_their_own(self):
    x, specification = _random(3, _INPUTS), {'shift': _random(_INPUTS, seed=3), 'quantizer': _QUANTIZERS['clip']}
    shared = networks.quick_jit(inputs.prepare)(specification, x)
    for kernel in (_kernel(), _random(_INPUTS, _OUTPUTS)):
      own = _linear({'kernel': kernel, 'input': specification}, x)
      np.testing.assert_allclose(_linear({'kernel': kernel}, shared), own, atol=1e-6)

  def test_kernel_quantizer_computes_what_the_rounded_kernel_does(self):
    x, kernel = _random(3, _INPUTS), _random(_INPUTS, _OUTPUTS, seed=1)
    quantizer = quantizers.WeightQuantizer(formats.parse('int4'), group_size=4)
    layer = {'kernel': kernel, 'kernel_quantizer': quantizer}
    rounded = {'kernel': _quantize(kernel, formats.parse('int4'), group_size=4)}
    np.testing.assert_array_equal(_linear(layer, x), _linear(rounded, x))
    gradient = networks.quick_jit(
        jax.grad(lambda kernel: jnp.sum(linear.linear({**layer, 'kernel': kernel}, x))))(kernel)
    np.testing.assert_allclose(gradient, jnp.sum(x, axis=0)[:, None] * jnp.ones_like(kernel), rtol=1e-6)


class EmbeddingTest(parameterized.TestCase):

  @parameterized.product(format_axis=[('int4', -2), ('uint3', -1), ('dint4', -1)], dtype=['float32', 'bfloat16'])
  def test_rows_are_those_of_the_dequantized_table(self, format_axis, dtype):
    name, axis = format_axis
    table, ids = _kernel(name, 2, axis), jnp.int32([[0, 15, 3], [3, 7, 0]])
    rows = _embed({'kernel': table}, ids, dtype)
    self.assertEqual(rows.dtype, dtype)
    np.testing.assert_array_equal(rows, _dequantize(table)[ids].astype(dtype))
    np.testing.assert_array_equal(rows, _embed({'kernel': _dequantize(table)}, ids, dtype))

  def test_gradient_reaches_the_rows_that_are_looked_up(self):
    table = _random(5, 3)
    loss = lambda table: jnp.sum(linear.embed({'kernel': table}, jnp.int32([1, 4, 1]), jnp.float32))
    gradient = networks.quick_jit(jax.grad(loss))(table)
    np.testing.assert_array_equal(gradient[:, 0], [0, 2, 0, 0, 1])


class GradientTest(parameterized.TestCase):

  @parameterized.parameters(
      *((name, ('uint4', 4), 'float32') for name in _QUANTIZERS), ('clip', ('int4', None), 'bfloat16'),
      ('per token', ('dint4', 4), 'float32'))
  def test_integer_products_differentiate_as_the_product_of_their_values(self, quantizer, kernel, dtype):
    kernel, cotangent = _kernel(*kernel), _random(3, _OUTPUTS, seed=5).astype(dtype)

    def loss(integer, x, quantizer, scale, bias):
      scaled = dataclasses.replace(kernel, scale=scale)
      layer = {'kernel': scaled if integer else quantize.dequantize(scaled), 'bias': bias}
      return jnp.vdot(linear.linear({**layer, 'input': {'quantizer': quantizer}}, x), cotangent).astype(jnp.float32)

    gradients = networks.quick_jit(jax.grad(loss, (1, 2, 3, 4)), static_argnums=0)
    arguments = _random(3, _INPUTS).astype(dtype), _QUANTIZERS[quantizer], kernel.scale, _random(_OUTPUTS)
    integer, straight = (gradients(integer, *arguments) for integer in (True, False))
    tolerance = {'rtol': 1e-5, 'atol': 1e-4} if dtype == 'float32' else {'rtol': 0.05, 'atol': 0.1}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.float32(a), np.float32(b), **tolerance), integer, straight)
    self.assertTrue(all(np.abs(np.float32(g)).max() > 0.01 for g in jax.tree.leaves(integer)))


class LinearModuleTest(absltest.TestCase):

  def test_initialization_makes_a_float_kernel_and_a_bias_on_request(self):
    for use_bias in (False, True):
      module = linear.Linear(_OUTPUTS, use_bias=use_bias)
      params = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((2, _INPUTS), jnp.bfloat16))['params']
      shapes = {key: (value.shape, str(value.dtype)) for key, value in params.items()}
      want = {'kernel': ((_INPUTS, _OUTPUTS), 'float32')} | ({'bias': ((_OUTPUTS,), 'float32')} if use_bias else {})
      self.assertEqual(shapes, want)

  def test_runs_whatever_the_tree_holds(self):
    x = _random(3, _INPUTS)
    specification = {'quantizer': _QUANTIZERS['clip']}
    apply = networks.quick_jit(linear.Linear(_OUTPUTS).apply)
    for kernel in (_random(_INPUTS, _OUTPUTS, seed=1), _kernel()):
      layer = {'kernel': kernel, 'bias': _random(_OUTPUTS), 'input': specification}
      np.testing.assert_allclose(apply({'params': layer}, x), _linear(layer, x), atol=1e-5)

  def test_shared_kernel_takes_the_place_of_its_own(self):
    x, table = _random(3, _INPUTS), _random(_OUTPUTS, _INPUTS)
    module = linear.Linear(_OUTPUTS)
    self.assertEmpty(module.init(jax.random.key(0), x, table))
    y = module.apply({'params': {'input': {'quantizer': _QUANTIZERS['clip']}}}, x, table)
    np.testing.assert_allclose(y, _QUANTIZERS['clip'](x) @ table.T, atol=1e-6)


if __name__ == '__main__':
  absltest.main()
