"""Keys and values come to lie in the slots of their positions, and nothing else changes."""

from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant.layers import cache
from jaxquant.layers import inputs
from jaxquant.numerics import codes
from jaxquant.numerics import formats
from jaxquant.numerics import quantizers

_HEADS, _DIM, _SLOTS = 2, 3, 6
_NAMES = {'keys': 'key_scale', 'values': 'value_scale'}
_DYNAMIC = lambda name, **options: {'quantizer': quantizers.DynamicQuantizer(formats.parse(name), **options)}


class _Holder(nn.Module):
  """Writes to a cache, as an attention does."""

  @nn.compact
  def __call__(self, *operands, **options):
    return cache.extend(self, *operands, **options)


def _activation(numbers, scale) -> inputs.Activation:
  """Numbers, or codes of 8 bits with a scale for each head of each token."""
  if scale is None:
    return inputs.Activation(jnp.asarray(numbers), None)
  made = codes.Codes(jnp.asarray(numbers), jnp.asarray(scale)[..., None], None, 8)
  return inputs.Activation(codes.values(made), made)


class ExtendTest(parameterized.TestCase):

  @parameterized.product(
      case=[([[2]], False), ([[5], [0]], False), ([[1, 2], [4, 5]], False), ([[3, 4, 5, 6, 7]], False),
            ([[6], [1]], False), ([[0, 1, 2]] * 2, True), ([[*range(8)]], True)],
      coded=[False, True])
  def test_slots_of_positions(self, case, coded):
    positions, first = np.array(case[0], np.int32), case[1]
    batch, tokens = positions.shape
    rng = np.random.default_rng(0)
    noise = lambda *shape, dtype: np.asarray(100 * rng.normal(size=shape), dtype)
    held = {name: noise(*array.shape, dtype=array.dtype)
            for name, array in cache.empty(batch, _SLOTS, _HEADS, _DIM, jnp.float32, coded).items()}
    new = {name: noise(batch, tokens, *array.shape[1:2], *array.shape[3:], dtype=array.dtype)
           for name, array in held.items()}
    want = {name: array.copy() for name, array in held.items()}
    for (row, token), slot in np.ndenumerate(positions):
      for name in want if slot < _SLOTS else ():
        want[name][row, :, slot] = new[name][row, token]
    operands = [_activation(new[name], new.get(scale)) for name, scale in _NAMES.items()]
    variables = {cache.COLLECTION: jax.tree.map(jnp.asarray, held)}
    got, changed = _Holder().apply(variables, *operands, positions, first=first, mutable=[cache.COLLECTION])
    jax.tree.map(np.testing.assert_array_equal, changed[cache.COLLECTION], want)
    for numbers, (name, scale) in zip(got, _NAMES.items()):
      np.testing.assert_array_equal(numbers, want[name] * want[scale][..., None] if coded else want[name])

  def test_codes_are_not_made_of_numbers(self):
    variables = {cache.COLLECTION: cache.empty(1, _SLOTS, _HEADS, _DIM, jnp.float32, codes=True)}
    numbers = inputs.Activation(jnp.ones((1, 1, _HEADS, _DIM)), None)
    with self.assertRaisesRegex(ValueError, 'trees that quantize keys and values, and this one does not'):
      _Holder().apply(variables, numbers, numbers, np.zeros((1, 1), np.int32), mutable=[cache.COLLECTION])


class CodedTest(parameterized.TestCase):

  @parameterized.parameters(
      ({}, False), ({'key': _DYNAMIC('int8')}, False), (dict.fromkeys(('key', 'value'), _DYNAMIC('int8')), True),
      (dict.fromkeys(('query', 'key', 'value'), _DYNAMIC('int8')), True),
      (dict.fromkeys(('key', 'value'), _DYNAMIC('int4')), False),
      (dict.fromkeys(('key', 'value'), _DYNAMIC('uint8')), False),
      (dict.fromkeys(('key', 'value'), _DYNAMIC('int8', group_size=2)), False),
      (dict.fromkeys(('key', 'value'), _DYNAMIC('int8') | {'scale': jnp.ones(_DIM)}), False),
      (dict.fromkeys(('key', 'value'), {'quantizer': quantizers.StepQuantizer(jnp.float32(1), 8)}), False))
  def test_codes_are_those_of_symmetric_ranges_of_heads(self, specifications, coded):
    self.assertEqual(cache.holds_codes(specifications), coded)


if __name__ == '__main__':
  absltest.main()
