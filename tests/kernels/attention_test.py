"""Attention of single tokens over the cache that they join: values against float64, and the cache to the last bit."""

import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import kernels
from kernels.mosaic import attention as mosaic
from kernels.mosaic import decode_attention
from tests import attention_cases
from tests import gpus
from tests import poisoning
from tests import interpreting

_lowered = lambda arguments: mosaic.lowered(**{'angles': None, 'window': None} | arguments)


def _abstract(rows, heads, kv_heads, slots, *, dim=128, dtype=jnp.bfloat16, rotated=True):
  of = jax.ShapeDtypeStruct
  return dict(
      qkv=of((rows, heads + 2 * kv_heads, dim), dtype), keys=of((rows, kv_heads, slots, dim), dtype),
      values=of((rows, kv_heads, slots, dim), dtype), positions=of((rows,), jnp.int32),
      angles=(of((rows, dim // 2), jnp.float32),) * 2 if rotated else None)


class XlaTest(attention_cases.AttentionCases):

  def attend(self, arguments):
    window = arguments.get('window')
    rest = {name: value for name, value in arguments.items() if name != 'window'}
    return jax.jit(functools.partial(kernels.decode_attention, window=window))(**rest)

  def test_numbers_of_32_bits(self):
    self.compare(attention_cases.step((2, 4, 2, 24), dtype=jnp.float32))

  @parameterized.parameters(
      (dict(implementation='cuda'), ValueError, "unknown implementation 'cuda'; there are xla, mosaic_gpu"),
      (dict(window=0), ValueError, 'a window is an integer of at least one token, not 0'),
      (dict(window=1.5), ValueError, 'a window is an integer of at least one token, not 1.5'),
      (dict(keys=None), ValueError, 'keys must be an array, not a NoneType'),
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
    arguments = attention_cases.step((2, 4, 2, 64), dtype=jnp.float32)
    with self.assertRaisesRegex(error, message):
      kernels.decode_attention(**arguments | options)


@interpreting.needed
class InterpretTest(attention_cases.AttentionCases):
  """Interprets the kernel's body, but for products, which the interpreter does not know."""

  def attend(self, arguments):
    def multiplied(total, a, b):
      return total + jnp.dot(a[...], b[...], preferred_element_type=jnp.float32)

    known = mock.patch.object(decode_attention, 'multiplied', multiplied)
    with known, interpreting.kernels():
      return _lowered(arguments)

  def test_a_position_before_the_first_touches_no_other_row(self):
    arguments = attention_cases.step((2, 2, 2, 64), positions=[5, 0])
    negative = self.attend(arguments | {'positions': jnp.asarray([5, -1], jnp.int32)})
    for result, want in zip(negative, self.attend(arguments)):
      np.testing.assert_array_equal(result[0], want[0])

  def test_angles_that_a_map_shares(self):
    """As many rows as maps, so that the axis of either could be taken for the other's."""
    steps = [attention_cases.step((2, 4, 2, 64), seed=seed) for seed in range(2)]
    shared = {name: steps[0][name] for name in ('angles', 'positions')}
    own = [{name: value for name, value in step.items() if name not in shared} for step in steps]
    mapped = jax.tree.map(lambda *parts: jnp.stack(parts), *own)
    got = jax.vmap(lambda each: self.attend(each | shared))(mapped)
    for i, step in enumerate(steps):
      for result, want in zip(got, self.attend(step | shared)):
        np.testing.assert_array_equal(result[i], want)

  def test_parts_of_a_cluster_are_put_together(self):
    rng = np.random.default_rng(0)
    scores, values = rng.normal(scale=9, size=(3, 40)), rng.normal(size=(3, 40, 16))

    def part(scores, values, relative_to):
      weights = np.exp2(scores - relative_to)
      return [jnp.full(16, x, jnp.float32) for x in (weights @ values, relative_to, weights.sum())]

    # The last part is of slots that are all behind the token.
    parts = [*map(part, scores, values, (0., 20., -3.)), part(np.full(40, -np.inf), values[0], 5.)]
    mixed, _, total = functools.reduce(decode_attention.joined, parts)
    weights = np.exp2(scores.reshape(-1))
    np.testing.assert_allclose(mixed / total, weights @ values.reshape(-1, 16) / weights.sum(), rtol=1e-5, atol=1e-6)

  @parameterized.product(stages=[3, 4, 6], tile=[64, 128])
  def test_tiles_take_turns_in_memory(self, stages, tile):
    # Not by jit, which keeps what is traced.
    traced = mock.patch.object(mosaic, '_call', mosaic._call.__wrapped__)  # pylint: disable=protected-access
    with traced, mock.patch.object(decode_attention, '_MOST_AHEAD', stages * tile), (
        mock.patch.object(decode_attention, '_LONG', 10**6)):  # clusters are not interpreted
      self.compare(attention_cases.step((2, 2, 1, 5 * tile), positions=[5 * tile - 1, 130]))


@gpus.needed
class MosaicTest(attention_cases.AttentionCases):

  def attend(self, arguments):
    window = arguments.get('window')
    rest = {name: value for name, value in arguments.items() if name != 'window'}
    call = functools.partial(kernels.decode_attention, window=window, implementation='mosaic_gpu')
    return poisoning.poisoned(jax.jit(lambda rest: call(**rest)), rest)

  @parameterized.parameters(
      (1, 32, 32, 128), (16, 32, 32, 128), (64, 32, 8, 256), (3, 32, 32, 2048), (3, 8, 8, 1024), (5, 32, 32, 512),
      (9, 32, 32, 384))
  def test_steps_of_models(self, *shape):
    self.compare(attention_cases.step(shape))

  @parameterized.product(
      shape=[(1, 32, 32, 2048), (1, 32, 8, 8192), (2, 32, 8, 4160), (1, 4, 1, 4096), (2, 16, 16, 1024)],
      window=[None, 300], end=[0, 1, 200, 500])
  def test_long_rows_that_a_cluster_shares(self, shape, window, end):
    rows, *_, slots = shape
    positions = [slots - 1 if not end else end, *[slots // 2] * (rows - 1)]
    self.compare(attention_cases.step(shape, positions=positions) | {'window': window})

  @parameterized.parameters((64, 32, 32, 512), (1, 32, 32, 4096))
  def test_a_race_would_change_the_values(self, *shape):
    arguments = attention_cases.step(shape)
    first, *others = (self.attend(arguments) for _ in range(5))
    for other in others:
      jax.tree.map(np.testing.assert_array_equal, other, first)


class LoweringTest(parameterized.TestCase):

  def _text(self, arguments, window=None):
    call = jax.jit(lambda arguments: _lowered(arguments | {'window': window}))
    return call.trace(arguments).lower(lowering_platforms=('cuda',)).as_text()

  @parameterized.product(
      shape=[(1, 32, 32, 128), (16, 32, 8, 2048), (64, 8, 1, 64), (1, 32, 8, 8192), (2, 32, 8, 4160)],
      options=[(False, jnp.float16), (True, jnp.bfloat16)])
  def test_shapes_for_cuda(self, shape, options):
    rotated, dtype = options
    text = self._text(_abstract(*shape, dtype=dtype, rotated=rotated), None if rotated else 9)
    self.assertEqual(text.count('custom_call @mosaic_gpu'), 1)
    # The cache is written in place.
    self.assertEqual(text.count('output_operand_alias<'), 2)

  def test_under_vmap(self):
    arguments = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((3, *a.shape), a.dtype), _abstract(2, 4, 4, 64))
    text = jax.jit(jax.vmap(_lowered)).trace(arguments).lower(lowering_platforms=('cuda',)).as_text()
    self.assertEqual(text.count('custom_call @mosaic_gpu'), 1)

  def test_it_has_no_derivative(self):
    arguments = attention_cases.step((1, 2, 2, 64))
    with self.assertRaisesRegex(NotImplementedError, 'it has no derivative'):
      jax.grad(lambda qkv: jnp.sum(_lowered(arguments | {'qkv': qkv})[0].astype(jnp.float32)))(arguments['qkv'])

  @parameterized.parameters(
      (_abstract(1, 2, 2, 64, dtype=jnp.float32), 'bfloat16 or float16, not float32'),
      (_abstract(1, 2, 2, 64, dim=64), 'heads of 128 features, not of 64'),
      (_abstract(1, 9, 1, 64), 'at most 8 queries that share keys, not 9'),
      (_abstract(1, 2, 2, 72), 'a multiple of 64 slots, not 1 of 72'),
      (_abstract(0, 2, 2, 64), 'not 0 of 64'))
  def test_what_it_does_not_take(self, arguments, message):
    with self.assertRaisesRegex(NotImplementedError, message):
      jax.eval_shape(_lowered, arguments)


if __name__ == '__main__':
  absltest.main()
