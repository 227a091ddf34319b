"""Statistics of channels: parts in any order give what the whole gives, and that is what NumPy gives in float64."""

import functools
import itertools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant.calibration import channels

_FEATURES = 12
_KINDS = (channels.ChannelExtrema, channels.ChannelMagnitude, channels.SecondMoment)
_DTYPES = (np.float32, jnp.bfloat16)
_SPLITS = ((1, 8), (4, 5), (2, 2, 5), (1,) * 9)


def _activations(dtype=np.float32, sequences=9, tokens=50):
  """[sequences, tokens, features] with heavy tails, of scales from 1e-3 to 1e2, the last channel constant."""
  x = np.random.default_rng(0).standard_t(3, size=(sequences, tokens, _FEATURES)) * np.logspace(-3, 2, _FEATURES) + 0.1
  x[..., -1] = -7
  return jnp.asarray(x.astype(dtype))


_observe = jax.jit(lambda statistic, x: statistic.observed(x))


def _of(kind, *parts):
  return functools.reduce(_observe, parts, kind.empty(_FEATURES))


def _wide(x):
  return np.asarray(x).astype(np.float64).reshape(-1, _FEATURES)


class MergingTest(parameterized.TestCase):

  @parameterized.product(kind=_KINDS, dtype=_DTYPES, sizes=_SPLITS)
  def test_parts_in_any_order_equal_the_whole(self, kind, dtype, sizes):
    x = _activations(dtype)
    whole = _of(kind, x)
    parts = jnp.split(x, np.cumsum(sizes)[:-1])
    for order in itertools.islice(itertools.permutations(parts), 3):
      separate = [_of(kind, part) for part in order]
      together = _of(kind, *order)
      for statistic in (functools.reduce(kind.merged, separate), together, _of(kind).merged(together)):
        self.assertEqual(jax.tree.structure(statistic), jax.tree.structure(whole))
        for got, want in zip(jax.tree.leaves(statistic), jax.tree.leaves(whole)):
          self.assertEqual((got.dtype, got.shape), (jnp.float32, want.shape))
          # Sums of products of either sign cancel: to 1e-6 of the largest terms.
          bound = 0 if kind is channels.ChannelExtrema else 1e-6 * np.max(np.abs(want))
          np.testing.assert_allclose(got, want, rtol=1e-6 * (bound > 0), atol=bound)

  @parameterized.parameters(*_KINDS)
  def test_a_saved_state_continues_to_the_same_bits(self, kind):
    parts = jnp.split(_activations(), 3)
    resumed = jax.tree.map(jnp.asarray, jax.device_get(_of(kind, *parts[:2])))
    jax.tree.map(np.testing.assert_array_equal, _observe(resumed, parts[2]), _of(kind, *parts))


class ValuesTest(parameterized.TestCase):

  @parameterized.parameters(*_DTYPES)
  def test_extrema_and_magnitudes(self, dtype):
    x = _activations(dtype)
    extrema, magnitude = _of(channels.ChannelExtrema, x[:4], x[4:]), _of(channels.ChannelMagnitude, x[:4], x[4:])
    np.testing.assert_array_equal(extrema.low, _wide(x).min(0))
    np.testing.assert_array_equal(extrema.high, _wide(x).max(0))
    np.testing.assert_array_equal(extrema.magnitude(), np.abs(_wide(x)).max(0))
    np.testing.assert_allclose(magnitude.mean(), np.abs(_wide(x)).mean(0), rtol=1e-6)

  @parameterized.parameters(*_DTYPES, np.float16)
  def test_second_moment_is_numpys_in_float64(self, dtype):
    x = _activations(dtype)
    want = _wide(x).T @ _wide(x)
    # Relative to what the entry could be: an entry is a sum of products of either sign.
    size = np.sqrt(np.outer(np.diag(want), np.diag(want)))
    moment = _of(channels.SecondMoment, x[:4], x[4:])
    np.testing.assert_array_less(np.abs(moment.matrix - want), 1e-6 * size)
    np.testing.assert_array_less(np.abs(moment.mean() - want / 450), 1e-6 * size / 450)
    self.assertEqual(moment.tokens, 450)
    np.testing.assert_array_equal(moment.matrix, moment.matrix.T)

  def test_nothing_observed_is_no_division_by_zero(self):
    np.testing.assert_array_equal(_of(channels.SecondMoment).mean(), np.zeros((_FEATURES, _FEATURES)))
    np.testing.assert_array_equal(_of(channels.ChannelMagnitude).mean(), np.zeros(_FEATURES))

  @parameterized.parameters(*_DTYPES)
  def test_output_error_is_the_squared_error_of_outputs(self, dtype):
    x = _activations(dtype)
    rng = np.random.default_rng(1)
    kernel = rng.normal(size=(_FEATURES, 7))
    others = np.float32(kernel + 0.1 * rng.normal(size=(2, 5, _FEATURES, 7)))
    difference = jnp.asarray(others - np.float32(kernel))
    got = jax.jit(channels.output_error)(_of(channels.SecondMoment, x).mean(), difference)
    outputs = _wide(x) @ np.float64(difference)  # [2, 5, tokens, 7]
    self.assertEqual(got.dtype, jnp.float32)
    np.testing.assert_allclose(got, (outputs**2).sum(-1).mean(-1), rtol=1e-5)


if __name__ == '__main__':
  absltest.main()
