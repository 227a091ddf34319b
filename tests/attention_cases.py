"""Steps of decoding, their attention in float64, and the cases that every implementation inherits."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import kernels
from tests import behind_cases

# rows, heads, heads of keys, slots
SHAPES = ((2, 4, 2, 192), (3, 2, 2, 64), (1, 8, 1, 128))
DIM = 128


def step(shape, *, dtype=jnp.bfloat16, rotated=True, coded=False, positions=None, seed=0) -> dict:
  """Arguments of `decode_attention` for one of `SHAPES`; what is behind the positions in the cache is large."""
  rows, heads, kv_heads, slots = shape
  rng = np.random.default_rng(seed)
  if positions is None:  # the first, the last, and any others
    positions = [*([0, slots - 1] if rows > 1 else []), *rng.integers(1, slots, rows)][:rows]
  positions = np.asarray(positions, np.int32)
  noise = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
  sizes = np.where(np.arange(slots) >= positions[:, None], 100, 1)[:, None]
  if coded:
    codes = rng.integers(-128, 128, (2, rows, kv_heads, slots, DIM), np.int8)
    scales = sizes * rng.uniform(0.005, 0.02, (2, rows, kv_heads, slots))
    cache = kernels.Cache(*map(jnp.asarray, codes), *(jnp.asarray(a, jnp.float32) for a in scales))
  else:
    keys, values = rng.normal(size=(2, rows, kv_heads, slots, DIM))
    cache = kernels.Cache(*(jnp.asarray(sizes[..., None] * a, dtype) for a in (keys, values)))
  angles = rng.uniform(0, 7, (rows, DIM // 2))
  return dict(
      qkv=noise(rows, heads + 2 * kv_heads, DIM), cache=cache, positions=jnp.asarray(positions),
      angles=tuple(jnp.asarray(f(angles), jnp.float32) for f in (np.cos, np.sin)) if rotated else None)


def quantized(x):
  """(codes, scales) of heads [..., DIM], as `quantize_activations` divides in float32."""
  x = np.asarray(x, np.float32)
  top = np.abs(x).max(-1)
  scale = np.where(top == 0, np.float32(1), np.maximum(top / np.float32(127), np.finfo(np.float32).tiny))
  return np.round(x / scale[..., None]), scale


def reference(qkv, cache, positions, angles=None, window=None):
  """(mixed, weights by magnitudes of values, the token's key, its value) in float64.

  Queries and keys are rounded to their dtype behind their rotation, and so is what codes stand for.
  """
  wide = lambda a: np.array(a, np.float64)
  rounded = lambda a: wide(jnp.asarray(np.float32(a)).astype(qkv.dtype))
  rows, kv_heads = cache.keys.shape[:2]
  heads = qkv.shape[1] - 2 * kv_heads

  def rotated(x):
    if angles is None:
      return x
    cos, sin = (wide(a)[:, None] for a in angles)
    first, second = np.split(x, 2, axis=-1)
    return rounded(np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1))

  def held(numbers, scale, new):
    """All slots, and the token in its own, as the cache has them."""
    numbers, at = wide(numbers), (np.arange(rows), slice(None), np.asarray(positions))
    if scale is None:
      numbers[at] = new
      return numbers
    scale = wide(scale)
    numbers[at], scale[at] = quantized(new)
    return rounded(numbers * scale[..., None])

  q, k, v = np.split(wide(qkv), (heads, heads + kv_heads), axis=1)
  q, k = rotated(q), rotated(k)
  keys, values = held(cache.keys, cache.key_scale, k), held(cache.values, cache.value_scale, v)
  mixed, size = np.zeros_like(q), np.zeros_like(q)
  for row, position in enumerate(np.asarray(positions)):
    seen = slice(0 if window is None else max(0, position - window + 1), position + 1)
    for head in range(heads):
      of = head // (heads // kv_heads)
      scores = keys[row, of, seen] @ q[row, head] / np.sqrt(DIM)
      weights = np.exp(scores - scores.max())
      weights /= weights.sum()
      mixed[row, head], size[row, head] = weights @ values[row, of, seen], weights @ np.abs(values[row, of, seen])
  return mixed, size, k, v


class AttentionCases(parameterized.TestCase):
  """What holds for every implementation; a subclass runs one."""

  def attend(self, arguments):
    """(mixed, cache) of the implementation."""
    raise NotImplementedError

  def compare(self, arguments):
    """Holds the results to the reference, and returns them; a rotated number may be the next one of its dtype."""
    mixed, cache = self.attend(arguments)
    given, dtype = arguments['cache'], arguments['qkv'].dtype
    want, size, key, value = reference(**arguments)
    self.assertEqual((mixed.shape, mixed.dtype), (want.shape, dtype))
    rounding = float(jnp.finfo(dtype).eps)
    self.assertLessEqual((np.abs(np.float64(mixed) - want) - max(4 * rounding, 1e-5) * size).max(), 0)
    kinds = lambda cache: jax.tree.map(lambda a: (a.shape, a.dtype), cache)
    self.assertEqual(kinds(cache), kinds(given))
    others = np.arange(given.keys.shape[2]) != np.asarray(arguments['positions'])[:, None]
    jax.tree.map(lambda got, given: np.testing.assert_array_equal(
        *(np.asarray(a).swapaxes(1, 2)[others] for a in (got, given))), cache, given)
    moved = 0 if arguments.get('angles') is None else rounding
    self._check_written(cache.keys, cache.key_scale, key, ~others, moved)
    self._check_written(cache.values, cache.value_scale, value, ~others, 0)
    return mixed, cache

  def _check_written(self, numbers, scale, want, at, moved):
    """Holds what is written to what was to be: a number, or the code that is nearest; on an edge either is."""
    numbers = np.float64(numbers).swapaxes(1, 2)[at]
    if scale is None:
      np.testing.assert_allclose(numbers, want, rtol=moved, atol=1e-6 if moved else 0)
      return
    scale, top = np.float64(scale).swapaxes(1, 2)[at], np.abs(want).max(-1)
    np.testing.assert_allclose(scale, np.where(top == 0, 1, top / 127), rtol=moved + 2e-7)
    scale = scale[..., None]
    self.assertLessEqual((np.abs(numbers * scale - want) - 0.5001 * scale - moved * np.abs(want)).max(), 0)

  @parameterized.product(shape=SHAPES, window=[None, 1, 70])
  def test_values(self, shape, window):
    self.compare(step(shape) | {'window': window})

  @parameterized.product(shape=SHAPES, window=[None, 70])
  def test_values_of_codes(self, shape, window):
    self.compare(step(shape, coded=True) | {'window': window})

  @parameterized.parameters(*((shape, False) for shape in SHAPES), (SHAPES[0], True))
  def test_values_that_are_not_rotated(self, shape, coded):
    self.compare(step(shape, dtype=jnp.bfloat16 if coded else jnp.float16, rotated=False, coded=coded))

  @parameterized.product(name=['codes', 'codes of a lower end'], coded=[False, True], shape=SHAPES)
  def test_codes_of_what_is_mixed(self, name, coded, shape):
    arguments = step(shape, coded=coded)
    asked = behind_cases.behind(None, name, size=0.3, bits=8)
    (plain, cache), (got, same) = (self.attend(arguments | options) for options in ({}, {'behind': asked}))
    self.assertLessEqual(behind_cases.excess(np.asarray(got), np.asarray(plain), asked), 0)
    self.assertGreater(len(np.unique(got)), 5)
    jax.tree.map(np.testing.assert_array_equal, same, cache)

  @parameterized.parameters(False, True)
  def test_tokens_on_the_edges_of_copies(self, coded):
    self.compare(step((6, 4, 2, 192), coded=coded, positions=[1, 63, 64, 65, 127, 128]))

  @parameterized.parameters(False, True)
  def test_beyond_the_slots_only_the_last_one_may_change(self, coded):
    arguments = step((2, 4, 2, 128), coded=coded, positions=[200, 5])
    mixed, cache = self.attend(arguments)
    jax.tree.map(
        lambda got, given: np.testing.assert_array_equal(got[0, :, :-1], given[0, :, :-1]), cache, arguments['cache'])
    np.testing.assert_array_equal(
        mixed[1], self.attend(step((2, 4, 2, 128), coded=coded, positions=[3, 5]))[0][1])

  def test_a_token_alone_gets_its_value_as_the_cache_has_it(self):
    positions = np.array([0, 100, 127])
    mixed, cache = self.compare(step((3, 4, 2, 128), coded=True, positions=positions) | {'window': 1})
    codes, scales = (a[np.arange(3), :, positions] for a in (cache.values, cache.value_scale))
    np.testing.assert_array_equal(
        mixed, jnp.repeat((codes * scales[..., None]).astype(mixed.dtype), 2, axis=1))

  def test_a_token_attends_to_its_key_as_the_cache_has_it(self):
    """The query sees what rounding has changed, and the slot before, with the same code, gets the same weight."""
    arguments = step((1, 1, 1, 64), rotated=False, coded=True, positions=[1])
    cache, key = arguments['cache'], np.float32(arguments['qkv'][0, 1])
    codes, scale = quantized(key)
    arguments['cache'] = cache._replace(
        keys=cache.keys.at[0, 0, 0].set(codes.astype(np.int8)), key_scale=cache.key_scale.at[0, 0, 0].set(scale))
    arguments['qkv'] = arguments['qkv'].at[0, 0].set(jnp.asarray(8 * np.sign(key - scale * codes), jnp.bfloat16))
    self.compare(arguments)

  def test_heads_of_zeros_have_codes_of_zeros_with_scale_1(self):
    arguments = step((2, 4, 2, 64), coded=True, positions=[0, 40])
    arguments['qkv'] = arguments['qkv'].at[:, [4, 7]].set(0)  # a key, and a value of the other head
    _, cache = self.compare(arguments)
    for row, position in enumerate([0, 40]):
      for codes, scale, head in ((cache.keys, cache.key_scale, 0), (cache.values, cache.value_scale, 1)):
        self.assertFalse(codes[row, head, position].any())
        self.assertEqual(scale[row, head, position], 1)

  @parameterized.parameters(1e4, 1e-30)
  def test_heads_of_extreme_numbers(self, size):
    """Both in one cache; queries are small, so that neither keys nor their roundings decide alone."""
    arguments = step((3, 4, 2, 128), coded=True, positions=[0, 64, 127])
    sizes = np.where(np.arange(128) % 2, 1e4, 1e-30).astype(np.float32)
    cache = arguments['cache']
    arguments['cache'] = cache._replace(key_scale=cache.key_scale * sizes, value_scale=cache.value_scale * sizes)
    arguments['qkv'] = arguments['qkv'] * jnp.asarray([1e-4] * 4 + [size] * 4, jnp.bfloat16)[:, None]
    self.compare(arguments)
