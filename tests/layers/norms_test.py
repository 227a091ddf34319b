"""Normalization layers against float64 formulas."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant.layers import norms

_EPSILON = 1e-3


def _params(name: str) -> dict:
  rng = np.random.default_rng(1)
  params = {'scale': rng.normal(size=8)} | ({'bias': rng.normal(size=8)} if name == 'layer' else {})
  return {key: jnp.float32(value) for key, value in params.items()}


def _reference(name: str, params: dict, x) -> np.ndarray:
  x = np.asarray(x, np.float64)
  if name == 'layer':
    x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x * x).mean(-1, keepdims=True) + _EPSILON)
  return x * np.float64(params['scale']) + np.float64(params.get('bias', 0.0))


class NormsTest(parameterized.TestCase):

  # Far from zero a variance by differences of means would be wrong by a few thousandths.
  @parameterized.product(name=list(norms.NORMS), scale_mean_atol=[(1, 0, 1e-6), (0.02, 0, 1e-6), (1, 200, 2e-4)])
  def test_values_are_those_of_the_formula(self, name, scale_mean_atol):
    scale, mean, atol = scale_mean_atol
    x = jnp.float32(np.random.default_rng(0).normal(size=(3, 5, 8)) * scale + mean)
    y = norms.NORMS[name](_EPSILON).apply({'params': _params(name)}, x)
    np.testing.assert_allclose(y, _reference(name, _params(name), x), rtol=1e-5, atol=atol)

  @parameterized.parameters(*norms.NORMS)
  def test_in_bfloat16_only_the_result_is_rounded(self, name):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8)) + 30, jnp.bfloat16)
    apply = lambda x: norms.NORMS[name](_EPSILON).apply({'params': _params(name)}, x)
    np.testing.assert_array_equal(apply(x), apply(x.astype(jnp.float32)).astype(jnp.bfloat16))

  @parameterized.parameters(*norms.NORMS)
  def test_initial_gains_are_one_and_biases_zero_in_float32(self, name):
    params = norms.NORMS[name]().init(jax.random.key(0), jnp.zeros((2, 8), jnp.bfloat16))['params']
    want = {'scale': 1.0} | ({'bias': 0.0} if name == 'layer' else {})
    self.assertEqual(set(params), set(want))
    for key, value in want.items():
      np.testing.assert_array_equal(params[key], np.full(8, value, np.float32), strict=True)


if __name__ == '__main__':
  absltest.main()
