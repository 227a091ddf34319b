"""Rotary embeddings: the half-split convention by golden numbers, and the property they exist for."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant.layers import positions
from tests import networks


@networks.quick_jit
def _rotate(x, where, theta: float = 10_000.0):
  """Rotates x [tokens, heads, head_dim] to the positions `where` [tokens]."""
  return positions.rotate(x, positions.rotary_angles(where, x.shape[-1], theta))


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


if __name__ == '__main__':
  absltest.main()
