"""Rotary embeddings: the half-split convention by golden numbers, and the property they exist for."""

import functools

from absl.testing import absltest
import jax.numpy as jnp
import numpy as np

from jaxquant.layers import positions
from kernels import attention
from tests import networks


@functools.partial(networks.quick_jit, static_argnames='theta')
def _rotate(x, where, theta: float = 10_000.0):
  """Rotates x [tokens, heads, head_dim] to the positions `where` [tokens]."""
  return attention.rotate(x, positions.rotary_angles(where, x.shape[-1], positions.Rotation(theta)))


class PositionsTest(absltest.TestCase):

  def test_golden_values_of_the_half_split_convention(self):
    # Features 0 and 2 turn by 1 radian a position, features 1 and 3 by 1/100.
    x = jnp.float32([[[1, 2, 3, 4]]] * 3)
    want = [[1, 2, 3, 4], [-1.984111, 1.959901, 2.462378, 4.019800], [-3.144039, 1.919605, -0.339143, 4.039197]]
    np.testing.assert_allclose(_rotate(x, jnp.arange(3))[:, 0], want, atol=2e-6)

  def test_products_depend_on_the_distance_alone(self):
    q, k = np.random.default_rng(0).normal(size=(2, 1, 3, 8)).astype(np.float32)
    products = lambda m, n: np.sum(_rotate(q, np.array([m]), 100.0) * _rotate(k, np.array([n]), 100.0), axis=-1)
    for distance in (0, 1, 7):
      for n in (0, 3, 50):
        np.testing.assert_allclose(products(n + distance, n), products(distance, 0), atol=1e-5)
    self.assertGreater(np.abs(products(7, 0) - products(0, 0)).max(), 0.1)

  def test_lengths_are_kept(self):
    x = np.random.default_rng(0).normal(size=(5, 2, 6)).astype(np.float32)
    norms = np.linalg.norm(_rotate(x, np.arange(5) * 1000), axis=-1)
    np.testing.assert_allclose(norms, np.linalg.norm(x, axis=-1), rtol=1e-5)

  def test_in_bfloat16_only_the_result_is_rounded(self):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2, 6)), jnp.bfloat16)
    where = np.arange(5) * 1000
    np.testing.assert_array_equal(_rotate(x, where), _rotate(x.astype(jnp.float32), where).astype(jnp.bfloat16))

  def test_llama3_divides_long_waves_keeps_short_ones_and_mixes_those_between(self):
    plain = positions.Rotation(10_000.0).frequencies(64)
    stretched = positions.Rotation(10_000.0, 'llama3', 8.0, 1.0, 4.0, 512).frequencies(64)
    waves = 512 * plain / (2 * np.pi)
    np.testing.assert_allclose(stretched[waves < 1], plain[waves < 1] / 8, rtol=1e-6)
    np.testing.assert_allclose(stretched[waves > 4], plain[waves > 4], rtol=1e-6)
    between = (waves > 1) & (waves < 4)
    self.assertTrue(between.any())
    share = (waves[between] - 1) / 3
    np.testing.assert_allclose(stretched[between], plain[between] * (share + (1 - share) / 8), rtol=1e-6)
    np.testing.assert_allclose(positions.Rotation(10_000.0, 'linear', 2.0).frequencies(64), plain / 2, rtol=1e-6)


class AlibiTest(absltest.TestCase):

  def test_slopes_of_powers_of_two_and_others(self):
    np.testing.assert_allclose(positions.alibi_slopes(8), [2.0**-i for i in range(1, 9)])
    # The paper's code: the four slopes of a power, then the first and the third of its double.
    np.testing.assert_allclose(positions.alibi_slopes(6), [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])

  def test_bias_falls_with_distance(self):
    bias = positions.alibi_bias(2, jnp.arange(3), 3)
    np.testing.assert_allclose(bias[0][2], [-2 / 16, -1 / 16, 0])
    np.testing.assert_allclose(bias[1][2], [-2 / 256, -1 / 256, 0])
    # One query a row, at positions of their own.
    apart = positions.alibi_bias(2, jnp.array([[2], [1]]), 3)
    np.testing.assert_array_equal(apart, np.stack([bias[:, 2:], bias[:, 1:2]]))


if __name__ == '__main__':
  absltest.main()
