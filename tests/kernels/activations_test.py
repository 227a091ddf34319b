"""Quantization of activations: the codes are those of the model's quantizers, whoever computes them."""

import unittest

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np

import kernels
from kernels import activations
from kernels.mosaic import activations as mosaic
from jaxquant.numerics import formats
from jaxquant.numerics import quantizers
from tests import gpus

_NORMS = [None, 'rms', 'layer']


def _tokens(*shape, dtype=jnp.bfloat16, seed=0):
  """Tokens of different sizes, one of zeros and one of one sign."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=shape) * 10.0 ** rng.integers(-3, 3, (*shape[:-1], 1))
  x[..., 0, :] = 0
  x[..., -1, :] = np.abs(x[..., -1, :]) + 1
  return jnp.asarray(x, dtype)


def _before(norm, features, seed=1):
  rng = np.random.default_rng(seed)
  vector = lambda: jnp.asarray(rng.uniform(0.5, 1.5, features), jnp.float32)
  if norm is None:
    return activations.Before()
  return activations.Before(norm, vector(), vector() if norm == 'layer' else None, 1e-5, vector(), vector())


class XlaTest(parameterized.TestCase):

  @parameterized.product(bits=[4, 8], symmetric=[False, True], dtype=[jnp.bfloat16, jnp.float32])
  def test_codes_are_those_of_the_dynamic_quantizer(self, bits, symmetric, dtype):
    x = _tokens(2, 5, 96, dtype=dtype)
    want = quantizers.DynamicQuantizer(formats.IntFormat(bits, symmetric)).codes(x)
    got = kernels.quantize_activations(x, bits=bits, symmetric=symmetric)
    np.testing.assert_array_equal(got.codes, want.codes)
    np.testing.assert_array_equal(got.scale, want.scale)
    self.assertEqual(got.offset is None, symmetric)
    if not symmetric:
      np.testing.assert_array_equal(got.offset, want.offset)
    np.testing.assert_array_equal(got.row_sums, np.asarray(got.codes, np.int64).sum(-1, keepdims=True))

  @parameterized.product(norm=['rms', 'layer'], symmetric=[False, True])
  def test_values_are_those_of_the_norm(self, norm, symmetric):
    x, before = _tokens(6, 64, dtype=jnp.float32), _before(norm, 64)
    got = kernels.quantize_activations(x, bits=8, symmetric=symmetric, before=before)
    values = np.asarray(x, np.float64)
    values -= values.mean(-1, keepdims=True) if norm == 'layer' else 0
    values /= np.sqrt((values**2).mean(-1, keepdims=True) + before.epsilon)
    values = values * before.gain + (0 if before.bias is None else np.asarray(before.bias))
    values = (values - before.shift) / before.scale
    decoded = np.asarray(got.codes) * np.asarray(got.scale, np.float64) + (0 if symmetric else np.asarray(got.offset))
    self.assertLessEqual((np.abs(decoded - values) / np.asarray(got.scale)).max(), 0.501)

  @parameterized.parameters(
      (dict(implementation='cuda'), ValueError, "unknown implementation 'cuda'; there are xla, mosaic_gpu"),
      (dict(bits=9), ValueError, '2 to 8 bits, not 9'),
      (dict(before=activations.Before(norm='group')), ValueError, "unknown norm 'group'"),
      (dict(before=activations.Before(shift=np.ones(3))), ValueError, r'shift of shape \(3,\) does not fit'),
      (dict(implementation='mosaic_gpu'), NotImplementedError, 'compute capability 9.0, and this is cpu'))
  def test_refuses(self, options, error, message):
    with self.assertRaisesRegex(error, message):
      kernels.quantize_activations(jnp.ones((2, 8)), **options)


class _MosaicCases(parameterized.TestCase):

  def _compare(self, call, shape, norm, symmetric, bits, dtype):
    x, before = _tokens(*shape, dtype=dtype), _before(norm, shape[-1])
    options = dict(bits=bits, symmetric=symmetric, before=before)
    got = activations.QuantizedActivations(*call(x, options))
    want = jax.jit(lambda x: kernels.quantize_activations(x, **options))(x)
    np.testing.assert_allclose(got.scale, want.scale, rtol=1e-5)
    # Sums in another order and contracted products move a value by a unit in its last place, hence a code on an edge.
    moved = np.abs(np.asarray(got.codes, int) - np.asarray(want.codes, int))
    self.assertLessEqual(moved.max(), 1)
    self.assertLess(moved.mean(), 0.01)
    np.testing.assert_array_equal(got.row_sums, np.asarray(got.codes, np.int64).sum(-1, keepdims=True))
    if not symmetric:
      np.testing.assert_allclose(got.offset, want.offset, rtol=1e-5)


@unittest.skipUnless(hasattr(plgpu, 'force_gpu_interpret_mode'), 'this jax does not interpret Mosaic')
class InterpretTest(_MosaicCases):

  @parameterized.product(norm=_NORMS, symmetric=[False, True])
  def test_tokens(self, norm, symmetric):
    def call(x, options):
      with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams()):
        return mosaic.lowered(activations.codes_of, x, **options)

    self._compare(call, (3, 256), norm, symmetric, 8 if symmetric else 4, jnp.bfloat16)


@gpus.needed
class MosaicTest(_MosaicCases):

  @parameterized.product(
      norm=_NORMS, symmetric=[False, True], bits=[4, 8], dtype=[jnp.bfloat16, jnp.float32],
      shape=[(2, 3, 4096), (70, 11008)])
  def test_tokens(self, norm, symmetric, bits, dtype, shape):
    call = lambda x, options: jax.jit(
        lambda x: kernels.quantize_activations(x, implementation='mosaic_gpu', **options))(x)
    self._compare(call, shape, norm, symmetric, bits, dtype)


class LoweringTest(parameterized.TestCase):

  @parameterized.product(norm=_NORMS, symmetric=[False, True], features=[256, 4096, 11008])
  def test_for_cuda(self, norm, symmetric, features):
    before = _before(norm, features)
    call = jax.jit(lambda x: mosaic.lowered(activations.codes_of, x, bits=8, symmetric=symmetric, before=before))
    traced = call.trace(jax.ShapeDtypeStruct((5, features), jnp.bfloat16))
    self.assertIn('mosaic_gpu', traced.lower(lowering_platforms=('cuda',)).as_text())

  def test_under_vmap(self):
    call = jax.jit(jax.vmap(
        lambda x: mosaic.lowered(activations.codes_of, x, bits=8, symmetric=True, before=activations.Before())[0]))
    traced = call.trace(jax.ShapeDtypeStruct((3, 5, 256), jnp.bfloat16))
    self.assertNotIn('stablehlo.while', traced.lower(lowering_platforms=('cuda',)).as_text())

  @parameterized.parameters(((5, 250), jnp.bfloat16, 'multiple of 256 features'), ((5, 256), jnp.int8, 'not int8'),
      ((5, 16_640), jnp.bfloat16, 'up to 16384'))
  def test_what_it_does_not_take(self, shape, dtype, message):
    with self.assertRaisesRegex(NotImplementedError, message):
      jax.eval_shape(
          lambda x: mosaic.lowered(activations.codes_of, x, bits=8, symmetric=True, before=activations.Before()),
          jax.ShapeDtypeStruct(shape, dtype))


if __name__ == '__main__':
  absltest.main()
