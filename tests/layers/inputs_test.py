"""Input specifications: their order, what they equal when folded away, activations computed late or prepared before."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.layers import inputs
from jaxquant.layers import linear
from jaxquant.numerics import codes as codes_lib
from jaxquant.numerics import formats
from jaxquant.numerics import hadamard
from jaxquant.numerics import quantizers
from tests import networks

_prepare = networks.quick_jit(inputs.prepare)
_CLIP = quantizers.ClipQuantizer(jnp.float32(-1), jnp.float32(1.5), 4)
_STATIC = {
    'clip': _CLIP,
    'lsq': quantizers.StepQuantizer(jnp.float32(0.3), 4),
    'pact': quantizers.PactQuantizer(jnp.float32(1.2), 4),
}


def _random(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _swiglu(gate, up):
  return jax.nn.silu(gate) * up


class PrepareTest(parameterized.TestCase):

  def test_nothing_to_do_returns_the_activation_itself(self):
    x = _random(3, 4)
    for specification in (None, {}):
      activation = inputs.prepare(specification, x)
      self.assertIs(activation.values, x)
      self.assertIsNone(activation.codes)

  def test_entries_apply_in_their_order_whatever_that_of_the_dict(self):
    x = _random(5, 4)
    specification = {
        'quantizer': quantizers.ClipQuantizer(jnp.float32(-2), jnp.float32(5.5), 4),
        'clip': jnp.float32([-1.2, 0.8]), 'hadamard': hadamard.Hadamard(2), 'scale': jnp.float32([0.5, 2, 1, 3]),
        'shift': jnp.float32([1, -1, 0, 0.25]), 'gather': jnp.int32([3, 0, 0, 1])}
    want = (np.asarray(x)[:, [3, 0, 0, 1]] - specification['shift']) / specification['scale']
    want = (want.reshape(-1, 2, 2) @ np.array([[1, 1], [1, -1]]) / np.sqrt(2)).reshape(-1, 4)
    want = np.clip(want, -1.2, 0.8)
    unquantized = {key: value for key, value in specification.items() if key != 'quantizer'}
    np.testing.assert_allclose(_prepare(unquantized, x).values, want, atol=1e-6)
    # Fifteen steps of one half from -2 up.
    activation = _prepare(specification, x)
    np.testing.assert_allclose(activation.values, np.round(2 * want) / 2, atol=1e-6)
    np.testing.assert_allclose(codes_lib.values(activation.codes), np.round(2 * want) / 2, atol=1e-6)

  def test_the_dtype_of_the_activation_is_kept(self):
    specification = {'shift': jnp.ones(4), 'scale': jnp.full(4, 3.0), 'clip': jnp.float32([-0.3, 0.3])}
    for extra in ({}, {'quantizer': _CLIP}, {'hadamard': hadamard.Hadamard(4)}):
      values = _prepare(specification | extra, _random(3, 4).astype(jnp.bfloat16)).values
      self.assertEqual(values.dtype, jnp.bfloat16)

  def test_folding_into_the_kernel_changes_nothing(self):
    x, kernel, bias = _random(6, 4), _random(5, 3, seed=1), _random(3, seed=2)
    gather, shift, scale = jnp.int32([3, 0, 0, 1, 2]), _random(5, seed=3), jnp.exp(_random(5, seed=4))
    layer = {'kernel': kernel, 'bias': bias, 'input': {'gather': gather, 'shift': shift, 'scale': scale}}
    rows = kernel / scale[:, None]
    folded = {'kernel': jnp.zeros((4, 3)).at[gather].add(rows), 'bias': bias - shift @ rows}
    np.testing.assert_allclose(linear.linear(layer, x), linear.linear(folded, x), rtol=1e-5, atol=1e-5)

  def test_unknown_entries_are_refused_by_name(self):
    with self.assertRaisesRegex(ValueError, r"unknown entries \['merge', 'smooth'\] .* gather, shift, scale"):
      inputs.prepare({'smooth': jnp.ones(4), 'scale': jnp.ones(4), 'merge': True}, _random(2, 4))

  @parameterized.parameters(1, 4, 16)
  def test_a_transform_that_kernels_have_too_changes_nothing(self, block):
    x, kernel = _random(6, 48), _random(48, 3, seed=1)
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < block:
      matrix = np.kron(matrix, [[1, 1], [1, -1]]) / np.sqrt(2)
    rotated = np.kron(np.eye(48 // block), matrix) @ kernel
    got = linear.linear({'kernel': rotated.astype(jnp.float32), 'input': {'hadamard': hadamard.Hadamard(block)}}, x)
    np.testing.assert_allclose(got, x @ kernel, rtol=1e-5, atol=1e-5)

  @parameterized.parameters(0, 3, 32)
  def test_blocks_that_a_transform_cannot_have_are_refused(self, block):
    with self.assertRaisesRegex(errors.UserError, f'power of two that divides 48 channels, not of {block}$'):
      inputs.prepare({'hadamard': hadamard.Hadamard(block)}, _random(2, 48))


class PreparedTest(parameterized.TestCase):

  def test_a_prepared_activation_passes_through(self):
    activation = inputs.prepare({'quantizer': _CLIP}, _random(3, 4))
    self.assertIs(inputs.prepare(None, activation), activation)

  def test_a_layer_may_go_on_with_a_site_that_does_not_quantize(self):
    x = _random(3, 4)
    first, second = {'scale': jnp.float32([1, 2, 3, 4])}, {'shift': jnp.ones(4), 'quantizer': _CLIP}
    activation = _prepare(second, _prepare(first, x))
    np.testing.assert_allclose(activation.values, _CLIP(x / first['scale'] - 1), atol=1e-6)
    self.assertIsNotNone(activation.codes)

  def test_codes_are_not_quantized_again(self):
    activation = inputs.prepare({'quantizer': _CLIP}, _random(3, 4))
    with self.assertRaisesRegex(ValueError, r"quantized at its site meets a second .* \['shift', 'quantizer'\]"):
      inputs.prepare({'shift': jnp.ones(4), 'quantizer': _CLIP}, activation)


class PendingTest(parameterized.TestCase):

  def _values_and_gradients(self, quantizer, late: bool):
    gate, up, weights = _random(5, 8), _random(5, 8, seed=1), _random(5, 8, seed=2)

    def loss(quantizer, gate, up):
      x = inputs.Pending(_swiglu, (gate, up)) if late else _swiglu(gate, up)
      return jnp.sum(inputs.prepare({'quantizer': quantizer} if quantizer else None, x).values * weights)

    return networks.quick_jit(jax.value_and_grad(loss, (0, 1, 2)))(quantizer, gate, up)

  @parameterized.parameters(*_STATIC, 'dynamic', 'none')
  def test_values_and_gradients_are_those_of_the_activation(self, name):
    dynamic = quantizers.DynamicQuantizer(formats.parse('uint4'))
    quantizer = {**_STATIC, 'dynamic': dynamic, 'none': None}[name]
    late, early = (self._values_and_gradients(quantizer, late) for late in (True, False))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), late, early)

  @parameterized.parameters(*_STATIC)
  def test_nothing_but_its_arrays_is_kept_for_the_backward_pass(self, name):
    prepare = lambda *arrays: inputs.prepare({'quantizer': _STATIC[name]}, inputs.Pending(_swiglu, arrays)).values
    _, pullback = jax.vjp(prepare, _random(5, 8), _random(5, 8, seed=1))
    self.assertLen([kept for kept in jax.tree.leaves(pullback) if kept.shape == (5, 8)], 2)

  def test_codes_are_those_of_the_activation(self):
    gate, up = _random(5, 8), _random(5, 8, seed=1)
    prepare = lambda *arrays: inputs.prepare({'quantizer': _CLIP}, inputs.Pending(_swiglu, arrays)).codes
    np.testing.assert_array_equal(networks.quick_jit(prepare)(gate, up).codes, _CLIP.codes(_swiglu(gate, up)).codes)


if __name__ == '__main__':
  absltest.main()
