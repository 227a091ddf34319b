"""Attention of single tokens over the cache that they join: values against float64, and the cache to the last bit."""

import functools
import itertools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import kernels
from kernels.mosaic import attention as mosaic
from kernels.mosaic import attention_parts
from kernels.mosaic import cache_codes
from kernels.mosaic import cache_numbers
from kernels.mosaic import column_numbers
from kernels.mosaic import decode_attention
from tests import attention_cases
from tests import gpus
from tests import interpreting
from tests import poisoning

_lowered = lambda arguments: mosaic.lowered(**{'angles': None, 'window': None} | arguments)


def _split(arguments):
  """(arrays, what a function is compiled for)."""
  static = {name: arguments[name] for name in ('window', 'behind') if name in arguments}
  return {name: value for name, value in arguments.items() if name not in static}, static


def _abstract(rows, heads, kv_heads, slots, *, dim=128, dtype=jnp.bfloat16, rotated=True, coded=False):
  of = jax.ShapeDtypeStruct
  numbers = of((rows, kv_heads, slots, dim), jnp.int8 if coded else dtype)
  scales = of((rows, kv_heads, slots), jnp.float32) if coded else None
  return dict(
      qkv=of((rows, heads + 2 * kv_heads, dim), dtype), cache=kernels.Cache(numbers, numbers, scales, scales),
      positions=of((rows,), jnp.int32), angles=(of((rows, dim // 2), jnp.float32),) * 2 if rotated else None)


class XlaTest(attention_cases.AttentionCases):

  def attend(self, arguments):
    rest, static = _split(arguments)
    return jax.jit(functools.partial(kernels.decode_attention, **static))(**rest)

  @parameterized.parameters((jnp.float32, False), (jnp.float32, True), (jnp.float16, True))
  def test_other_dtypes(self, dtype, coded):
    self.compare(attention_cases.step((2, 4, 2, 24), dtype=dtype, coded=coded))

  def test_tokens_of_codes_are_quantized_as_activations_are(self):
    arguments = attention_cases.step((3, 4, 2, 24), rotated=False, coded=True)
    _, cache = jax.tree.map(np.asarray, self.attend(arguments))
    want = jax.jit(functools.partial(kernels.quantize_activations, implementation='xla'))(arguments['qkv'])
    at = np.arange(3), slice(None), np.asarray(arguments['positions'])
    for first, codes, scale in ((4, cache.keys, cache.key_scale), (6, cache.values, cache.value_scale)):
      np.testing.assert_array_equal(codes[at], want.codes[:, first : first + 2])
      np.testing.assert_array_equal(scale[at], want.scale[:, first : first + 2, 0])

  @parameterized.parameters(
      (dict(implementation='cuda'), ValueError, "unknown implementation 'cuda'; there are xla, mosaic_gpu"),
      (dict(window=0), ValueError, 'a window is an integer of at least one token, not 0'),
      (dict(window=1.5), ValueError, 'a window is an integer of at least one token, not 1.5'),
      (dict(cache=None), ValueError, 'a cache is a kernels.Cache, not a NoneType'),
      (dict(cache=(np.ones((2, 2, 64, 128), np.float32),) * 2), ValueError, 'a cache is a kernels.Cache, not a tuple'),
      (dict(keys=None), ValueError, 'keys must be an array, not a NoneType'),
      (dict(keys=np.ones((2, 2, 64, 128), np.int8)), ValueError,
       'keys are codes, int8: they need key_scale and value_scale'),
      (dict(key_scale=np.ones((2, 2, 64), np.float32)), ValueError, 'value_scale must be an array, not a NoneType'),
      (dict(value_scale=np.ones((2, 2, 64), np.float32)), ValueError, 'key_scale must be an array, not a NoneType'),
      (dict.fromkeys(('key_scale', 'value_scale'), np.ones((2, 2, 64), np.float32)), ValueError,
       r'keys must be int8 \[2, 2, 64, 128\], not float32'),
      (dict(angles=5), ValueError, 'angles must be a pair of arrays, cosine and sine, not 5'),
      (dict(angles=(np.ones((2, 64), np.float32), None)), ValueError, 'sine must be an array, not a NoneType'),
      (dict(qkv=np.ones((2, 8, 128), np.int8)), ValueError, r'qkv must be floating .* not int8 \[2, 8, 128\]'),
      (dict(qkv=np.ones((2, 4, 128), np.float32)), ValueError, 'do not fit qkv of shape'),
      (dict(keys=np.ones((2, 64, 128), np.float32)), ValueError, 'do not fit qkv of shape'),
      (dict(values=np.ones((2, 2, 128, 64), np.float32)), ValueError, r'values must be float32 \[2, 2, 64, 128\]'),
      (dict(positions=np.ones(2, np.float32)), ValueError, r'positions must be int32 \[2\], not float32 \[2\]'),
      (dict(angles=(np.ones((2, 64), np.float32), np.ones((2, 1), np.float32))), ValueError, 'sine must be float32'),
      (dict(implementation='mosaic_gpu'), NotImplementedError, 'compute capability 9.0, and this is cpu'))
  def test_refuses(self, options, error, message):
    self._refuses(attention_cases.step((2, 4, 2, 64), dtype=jnp.float32), options, error, message)

  @parameterized.parameters(
      (dict(keys=np.ones((2, 2, 64, 128), np.float32)), r'keys must be int8 \[2, 2, 64, 128\], not float32'),
      (dict(values=np.ones((2, 2, 64, 128), np.float32)), r'values must be int8 \[2, 2, 64, 128\], not float32'),
      (dict(values=np.ones((2, 2, 32, 128), np.int8)), 'values must be int8 .* not int8'),
      (dict(key_scale=None), 'key_scale must be an array, not a NoneType'),
      (dict(value_scale=None), 'value_scale must be an array, not a NoneType'),
      (dict(key_scale=None, value_scale=None), 'keys are codes, int8: they need key_scale and value_scale'),
      (dict(key_scale=1.), 'key_scale must be an array, not a float'),
      (dict(key_scale=np.ones((2, 2, 64, 1), np.float32)),
       r'key_scale must be float32 \[2, 2, 64\], not float32 \[2, 2, 64, 1\]'),
      (dict(value_scale=np.ones((2, 2, 64), np.float16)), r'value_scale must be float32 .* not float16 \[2, 2, 64\]'))
  def test_refuses_codes(self, options, message):
    self._refuses(attention_cases.step((2, 4, 2, 64), coded=True), options, ValueError, message)

  def _refuses(self, arguments, options, error, message):
    """Arguments, or arrays of the cache, are replaced."""
    held = {name: options[name] for name in kernels.Cache._fields if name in options}
    rest = {name: value for name, value in options.items() if name not in held}
    arguments['cache'] = arguments['cache']._replace(**held)
    with self.assertRaisesRegex(error, f'^[^\n]*{message}[^\n]*$'):
      kernels.decode_attention(**arguments | rest)


@interpreting.needed
class InterpretTest(attention_cases.AttentionCases):
  """Interprets the kernel's body, but for products, reductions and codes, which the interpreter does not know."""

  def attend(self, arguments):
    def multiplied(total, a, b):
      return total + jnp.dot(a[...], b[...], preferred_element_type=jnp.float32)

    operand = lambda tile: tile[...].astype(jnp.bfloat16) / cache_codes._FACTOR  # pylint: disable=protected-access
    known = dict(
        by_keys=lambda total, tile, queries: multiplied(total, operand(tile), queries[...].T),
        by_values=lambda total, tile, weights: multiplied(total, operand(tile).T, weights[...].T),
        load=lambda ref: ref[...], store=cache_numbers.store)
    reductions = dict(
        over_rows=lambda array, kind, scratch: {'sum': jnp.sum, 'max': jnp.max}[kind](array, axis=0),
        magnitudes=lambda first, second, scratch: [jnp.max(jnp.abs(array)) for array in (first, second)])
    with (mock.patch.object(cache_numbers, 'multiplied', multiplied), mock.patch.multiple(cache_codes, **known),
          mock.patch.multiple(column_numbers, **reductions), interpreting.kernels()):
      return _lowered(arguments)

  @parameterized.parameters(False, True)
  def test_a_position_before_the_first_touches_no_other_row(self, coded):
    arguments = attention_cases.step((2, 2, 2, 64), coded=coded, positions=[5, 0])
    negative = self.attend(arguments | {'positions': jnp.asarray([5, -1], jnp.int32)})
    jax.tree.map(lambda result, want: np.testing.assert_array_equal(result[0], want[0]),
                 negative, self.attend(arguments))

  def test_angles_that_a_map_shares(self):
    """As many rows as maps, so that the axis of either could be taken for the other's."""
    steps = [attention_cases.step((2, 4, 2, 64), seed=seed) for seed in range(2)]
    shared = {name: steps[0][name] for name in ('angles', 'positions')}
    own = [{name: value for name, value in step.items() if name not in shared} for step in steps]
    mapped = jax.tree.map(lambda *parts: jnp.stack(parts), *own)
    got = jax.vmap(lambda each: self.attend(each | shared))(mapped)
    for i, step in enumerate(steps):
      jax.tree.map(lambda result, want, i=i: np.testing.assert_array_equal(result[i], want),
                   got, self.attend(step | shared))

  def test_parts_of_a_cluster_are_put_together(self):
    rng = np.random.default_rng(0)
    scores, values = rng.normal(scale=9, size=(3, 40)), rng.normal(size=(3, 40, 16))

    def part(scores, values, relative_to):
      weights = np.exp2(scores - relative_to)
      return [jnp.full(16, x, jnp.float32) for x in (weights @ values, relative_to, weights.sum())]

    # The last part is of slots that are all behind the token.
    parts = [*map(part, scores, values, (0., 20., -3.)), part(np.full(40, -np.inf), values[0], 5.)]
    mixed, _, total = functools.reduce(attention_parts.joined, parts)
    weights = np.exp2(scores.reshape(-1))
    np.testing.assert_allclose(mixed / total, weights @ values.reshape(-1, 16) / weights.sum(), rtol=1e-5, atol=1e-6)

  @parameterized.parameters(*itertools.product([3, 4, 6], [64, 128], [False]), (3, 64, True), (4, 128, True))
  def test_tiles_take_turns_in_memory(self, stages, tile, coded):
    # Not by jit, which keeps what is traced.
    traced = mock.patch.object(mosaic, '_call', mosaic._call.__wrapped__)  # pylint: disable=protected-access
    with traced, mock.patch.object(decode_attention, '_MOST_AHEAD', stages * tile // (2 if coded else 1)), (
        mock.patch.object(decode_attention, '_LONG', 10**6)):  # clusters are not interpreted
      self.compare(attention_cases.step((2, 2, 1, 5 * tile), coded=coded, positions=[5 * tile - 1, 130]))


@gpus.needed
class MosaicTest(attention_cases.AttentionCases):

  def attend(self, arguments):
    rest, static = _split(arguments)
    call = functools.partial(kernels.decode_attention, implementation='mosaic_gpu', **static)
    return poisoning.poisoned(jax.jit(lambda rest: call(**rest)), rest)

  @parameterized.product(
      shape=[(1, 32, 32, 128), (16, 32, 32, 128), (64, 32, 8, 256), (3, 32, 32, 2048), (3, 8, 8, 1024),
             (5, 32, 32, 512), (9, 32, 32, 384)],
      coded=[False, True])
  def test_steps_of_models(self, shape, coded):
    self.compare(attention_cases.step(shape, coded=coded))

  @parameterized.product(
      shape=[(1, 32, 32, 2048), (1, 32, 8, 8192), (2, 32, 8, 4160), (1, 4, 1, 4096), (2, 16, 16, 1024)],
      window=[None, 300], end=[0, 1, 200, 500], coded=[False, True])
  def test_long_rows_that_a_cluster_shares(self, shape, window, end, coded):
    rows, *_, slots = shape
    positions = [slots - 1 if not end else end, *[slots // 2] * (rows - 1)]
    self.compare(attention_cases.step(shape, coded=coded, positions=positions) | {'window': window})

  @parameterized.product(shape=[(64, 32, 32, 512), (1, 32, 32, 4096)], coded=[False, True])
  def test_a_race_would_change_the_values(self, shape, coded):
    arguments = attention_cases.step(shape, coded=coded)
    first, *others = (self.attend(arguments) for _ in range(5))
    for other in others:
      jax.tree.map(np.testing.assert_array_equal, other, first)


class LoweringTest(parameterized.TestCase):

  def _text(self, arguments, window=None):
    call = jax.jit(lambda arguments: _lowered(arguments | {'window': window}))
    return call.trace(arguments).lower(lowering_platforms=('cuda',)).as_text()

  @parameterized.product(
      shape=[(1, 32, 32, 128), (16, 32, 8, 2048), (64, 8, 1, 64), (1, 32, 8, 8192), (2, 32, 8, 4160)],
      options=[(False, jnp.float16, False), (True, jnp.bfloat16, False), (True, jnp.bfloat16, True)])
  def test_shapes_for_cuda(self, shape, options):
    rotated, dtype, coded = options
    text = self._text(_abstract(*shape, dtype=dtype, rotated=rotated, coded=coded), None if rotated else 9)
    self.assertEqual(text.count('custom_call @mosaic_gpu'), 1)
    # The cache is written in place.
    self.assertEqual(text.count('output_operand_alias<'), 4 if coded else 2)

  @parameterized.parameters(False, True)
  def test_under_vmap(self, coded):
    arguments = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((3, *a.shape), a.dtype), _abstract(2, 4, 4, 64, coded=coded))
    text = jax.jit(jax.vmap(_lowered)).trace(arguments).lower(lowering_platforms=('cuda',)).as_text()
    self.assertEqual(text.count('custom_call @mosaic_gpu'), 1)

  def test_it_has_no_derivative(self):
    arguments = attention_cases.step((1, 2, 2, 64))
    with self.assertRaisesRegex(NotImplementedError, 'it has no derivative'):
      jax.grad(lambda qkv: jnp.sum(_lowered(arguments | {'qkv': qkv})[0].astype(jnp.float32)))(arguments['qkv'])

  @parameterized.parameters(
      (_abstract(1, 2, 2, 64, dtype=jnp.float32), 'bfloat16 or float16, not float32'),
      (_abstract(1, 2, 2, 64, dtype=jnp.float32, coded=True), 'bfloat16 beside a cache of codes, not float32'),
      (_abstract(1, 2, 2, 64, dtype=jnp.float16, coded=True), 'bfloat16 beside a cache of codes, not float16'),
      (_abstract(1, 2, 2, 72, coded=True), 'a multiple of 64 slots, not 1 of 72'),
      (_abstract(1, 2, 2, 64, dim=64), 'heads of 128 features, not of 64'),
      (_abstract(1, 9, 1, 64), 'at most 8 queries that share keys, not 9'),
      (_abstract(1, 2, 2, 72), 'a multiple of 64 slots, not 1 of 72'),
      (_abstract(0, 2, 2, 64), 'not 0 of 64'))
  def test_what_it_does_not_take(self, arguments, message):
    with self.assertRaisesRegex(NotImplementedError, message):
      jax.eval_shape(_lowered, arguments)


if __name__ == '__main__':
  absltest.main()
