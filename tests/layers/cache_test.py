"""Keys and values come to lie in the slots of their positions, and nothing else changes."""

from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant.layers import cache

_HEADS, _DIM, _SLOTS = 2, 3, 6


class _Holder(nn.Module):
  """Writes to a cache, as an attention does."""

  @nn.compact
  def __call__(self, *operands, **options):
    return cache.extend(self, *operands, **options)


class ExtendTest(parameterized.TestCase):

  @parameterized.parameters(
      ([[2]], False), ([[5], [0]], False), ([[1, 2], [4, 5]], False), ([[3, 4, 5, 6, 7]], False), ([[6], [1]], False),
      ([[0, 1, 2]] * 2, True), ([[*range(8)]], True))
  def test_slots_of_positions(self, positions, first):
    positions = np.array(positions, np.int32)
    batch, tokens = positions.shape
    rng = np.random.default_rng(0)
    held = {name: rng.normal(size=array.shape).astype(np.float32)
            for name, array in cache.empty(batch, _SLOTS, _HEADS, _DIM, jnp.float32).items()}
    new = rng.normal(size=(2, batch, tokens, _HEADS, _DIM)).astype(np.float32)
    want = {name: array.copy() for name, array in held.items()}
    for (row, token), slot in np.ndenumerate(positions):
      if slot < _SLOTS:
        want['keys'][row, :, slot], want['values'][row, :, slot] = new[:, row, token]
    variables = {cache.COLLECTION: jax.tree.map(jnp.asarray, held)}
    got, changed = _Holder().apply(variables, *new, positions, first=first, mutable=[cache.COLLECTION])
    for name, array in zip(('keys', 'values'), got):
      np.testing.assert_array_equal(array, want[name])
      np.testing.assert_array_equal(changed[cache.COLLECTION][name], want[name])


if __name__ == '__main__':
  absltest.main()
