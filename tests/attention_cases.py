"""Steps of decoding, their attention in float64, and the cases that every implementation inherits."""

from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

# rows, heads, heads of keys, slots
SHAPES = ((2, 4, 2, 192), (3, 2, 2, 64), (1, 8, 1, 128))
DIM = 128


def step(shape, *, dtype=jnp.bfloat16, rotated=True, positions=None, seed=0) -> dict:
  """Arguments of `decode_attention` for one of `SHAPES`; what is behind the positions in the cache is large."""
  rows, heads, kv_heads, slots = shape
  rng = np.random.default_rng(seed)
  if positions is None:  # the first, the last, and any others
    positions = [*([0, slots - 1] if rows > 1 else []), *rng.integers(1, slots, rows)][:rows]
  positions = np.asarray(positions, np.int32)
  noise = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
  keys, values = rng.normal(size=(2, rows, kv_heads, slots, DIM))
  behind = np.arange(slots) >= positions[:, None]
  keys, values = (jnp.asarray(np.where(behind[:, None, :, None], 100 * a, a), dtype) for a in (keys, values))
  angles = rng.uniform(0, 7, (rows, DIM // 2))
  return dict(
      qkv=noise(rows, heads + 2 * kv_heads, DIM), keys=keys, values=values, positions=jnp.asarray(positions),
      angles=tuple(jnp.asarray(f(angles), jnp.float32) for f in (np.cos, np.sin)) if rotated else None)


def reference(qkv, keys, values, positions, angles=None, window=None):
  """(mixed, keys, values) in float64; queries and keys are rounded to their dtype behind their rotation."""
  wide = lambda a: np.asarray(a, np.float64)
  kv_heads, heads = keys.shape[1], qkv.shape[1] - 2 * keys.shape[1]

  def rotated(x):
    if angles is None:
      return x
    cos, sin = (wide(a)[:, None] for a in angles)
    first, second = np.split(x, 2, axis=-1)
    turned = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return wide(jnp.asarray(turned, jnp.float32).astype(qkv.dtype))

  q, k, v = np.split(wide(qkv), (heads, heads + kv_heads), axis=1)
  q, k, keys, values = rotated(q), rotated(k), wide(keys), wide(values)
  mixed = np.zeros_like(q)
  for row, position in enumerate(np.asarray(positions)):
    keys[row, :, position], values[row, :, position] = k[row], v[row]
    seen = slice(0 if window is None else max(0, position - window + 1), position + 1)
    for head in range(heads):
      of = head // (heads // kv_heads)
      scores = keys[row, of, seen] @ q[row, head] / np.sqrt(DIM)
      weights = np.exp(scores - scores.max())
      mixed[row, head] = weights / weights.sum() @ values[row, of, seen]
  return mixed, keys, values


class AttentionCases(parameterized.TestCase):
  """What holds for every implementation; a subclass runs one."""

  def attend(self, arguments):
    """(mixed, keys, values) of the implementation."""
    raise NotImplementedError

  def compare(self, arguments):
    """Holds the results to the reference; a rotated number may be the next one of its dtype."""
    got, want = self.attend(arguments), reference(**arguments)
    dtype = arguments['qkv'].dtype
    rounding = float(jnp.finfo(dtype).eps)
    for result, wanted in zip(got, want):
      self.assertEqual((result.shape, result.dtype), (wanted.shape, dtype))
    np.testing.assert_allclose(np.float64(got[0]), want[0], rtol=0, atol=max(4 * rounding, 1e-5))
    np.testing.assert_allclose(np.float64(got[1]), want[1], rtol=rounding, atol=1e-6)
    np.testing.assert_array_equal(np.float64(got[2]), want[2])

  @parameterized.product(shape=SHAPES, window=[None, 1, 70])
  def test_values(self, shape, window):
    self.compare(step(shape) | {'window': window})

  @parameterized.parameters(*SHAPES)
  def test_values_that_are_not_rotated(self, *shape):
    self.compare(step(shape, dtype=jnp.float16, rotated=False))

  def test_tokens_on_the_edges_of_copies(self):
    self.compare(step((6, 4, 2, 192), positions=[1, 63, 64, 65, 127, 128]))

  def test_beyond_the_slots_only_the_last_one_may_change(self):
    arguments = step((2, 4, 2, 128), positions=[200, 5])
    mixed, keys, values = self.attend(arguments)
    np.testing.assert_array_equal(keys[0, :, :-1], arguments['keys'][0, :, :-1])
    np.testing.assert_array_equal(values[0, :, :-1], arguments['values'][0, :, :-1])
    np.testing.assert_array_equal(mixed[1], self.attend(step((2, 4, 2, 128), positions=[3, 5]))[0][1])
