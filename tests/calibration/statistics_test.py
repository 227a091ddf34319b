"""Statistics of activations: halves give what the whole gives, and ranges are those of NumPy."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant.calibration import statistics

_BIN = 1.0068  # upper over lower edge of a bin, (1e12)^(1 / 4096)
_MERGEABLE = ['minmax', 'average', 'percentile', 'token_wise']


def _activations(sequences=12, dtype=np.float32, seed=0):
  """[sequences, tokens, features] with heavy tails, more of them above zero."""
  x = np.random.default_rng(seed).standard_t(2, size=(sequences, 9, 16)) + 0.5
  return jnp.asarray(x.astype(dtype))


_observe = jax.jit(lambda statistic, x: statistic.observed(x))


def _of(kind, *parts):
  statistic = statistics.KINDS[kind]()
  for part in parts:
    statistic = _observe(statistic, part)
  return statistic


class MergingTest(parameterized.TestCase):

  @parameterized.product(kind=_MERGEABLE, dtype=[np.float32, jnp.bfloat16], cut=[1, 6])
  def test_merged_parts_equal_the_whole(self, kind, dtype, cut):
    x = _activations(dtype=dtype)
    whole, first, second = _of(kind, x), _of(kind, x[:cut]), _of(kind, x[cut:])
    exact = kind != 'average'
    for statistic in (first.merged(second), second.merged(first), _of(kind, x[:cut], x[cut:]),
                      _of(kind).merged(whole)):
      self.assertEqual(jax.tree.structure(statistic), jax.tree.structure(whole))
      for got, want in zip(jax.tree.leaves(statistic), jax.tree.leaves(whole)):
        self.assertEqual((got.dtype, got.shape), (want.dtype, want.shape))
        np.testing.assert_allclose(got, want, rtol=0 if exact else 1e-6)

  def test_a_moving_average_depends_on_order_and_so_has_no_merge(self):
    first, second = _activations(seed=1), _activations(seed=2)
    self.assertFalse(hasattr(statistics.MovingExtrema, 'merged'))
    forth, back = (_of('moving_average', *parts) for parts in ((first, second), (second, first)))
    self.assertNotEqual(float(forth.high), float(back.high))

  @parameterized.parameters(*statistics.KINDS)
  def test_a_saved_state_continues_as_if_never_interrupted(self, kind):
    parts = [_activations(4, seed=seed) for seed in range(4)]
    straight = _of(kind, *parts)
    saved = jax.device_get(_of(kind, *parts[:2]))
    resumed = jax.tree.map(jnp.asarray, saved)
    for part in parts[2:]:
      resumed = _observe(resumed, part)
    jax.tree.map(np.testing.assert_array_equal, resumed, straight)


class RangesTest(parameterized.TestCase):

  @parameterized.parameters(np.float32, jnp.bfloat16)
  def test_extrema(self, dtype):
    x = _activations(dtype=dtype)
    low, high = _of('minmax', x).ends()
    self.assertEqual((low, high), (np.min(np.float32(x)), np.max(np.float32(x))))
    self.assertEqual((low.dtype, high.dtype), (jnp.float32, jnp.float32))

  @parameterized.parameters(np.float32, jnp.bfloat16)
  def test_average_is_over_sequences_not_batches(self, dtype):
    x = _activations(dtype=dtype)
    wide = np.float64(x)
    low, high = _of('average', x[:1], x[1:]).ends()
    np.testing.assert_allclose(low, wide.min((1, 2)).mean(), rtol=1e-6)
    np.testing.assert_allclose(high, wide.max((1, 2)).mean(), rtol=1e-6)

  @parameterized.parameters(0.9, 0.5, 0.0)
  def test_moving_average_is_the_loop_over_batches(self, momentum):
    statistic, low, high = statistics.MovingExtrema.empty(momentum), None, None
    for seed in range(5):
      x = _activations(seed=seed)
      statistic = _observe(statistic, x)
      low, high = (
          new if old is None else momentum * old + (1 - momentum) * new
          for old, new in ((low, float(x.min())), (high, float(x.max()))))
    np.testing.assert_allclose(statistic.ends(), (low, high), rtol=1e-5)

  @parameterized.parameters(50.5, 90, 99, 99.9, 99.99, 100)
  def test_percentiles_are_numpys_to_a_bin(self, percentile):
    x = np.concatenate([np.asarray(_activations(200)).ravel(), np.zeros(80, np.float32)])
    low, high = _of('percentile', jnp.asarray(x).reshape(4, -1, 10)).ends(percentile)
    for got, share in ((low, 100 - percentile), (high, percentile)):
      # Between the two values that NumPy would interpolate, and as far beyond as a bin is wide.
      below, above = (np.percentile(x, share, method=method) for method in ('lower', 'higher'))
      self.assertBetween(float(got), below - abs(below) * (_BIN - 1), above + abs(above) * (_BIN - 1))

  def test_the_tail_of_many_values_is_counted_from_its_own_end(self):
    """In float32, a sum of 1e9 no longer grows by a few."""
    once = _of('percentile', jnp.array([[[-1000.0] * 8 + [1000.0] * 8 + [1.0]]]))
    many = once.positive.at[jnp.argmax(once.positive)].set(10**9)  # the bin of 1, which is the lower one
    low, high = statistics.LogHistogram(once.negative, many, once.lost).ends(100)
    np.testing.assert_allclose((low, high), (-1000, 1000), rtol=_BIN - 1)

  @parameterized.product(kind=[*statistics.KINDS], value=[np.nan, np.inf, -np.inf], shape=[(2, 3, 4), (8, 32, 64)])
  def test_what_is_not_finite_does_not_get_lost(self, kind, value, shape):
    """Of many values, XLA's least and greatest on a CPU leave NaN out."""
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    x[1, 2, 3] = value
    statistic = _of(kind, jnp.asarray(x))
    self.assertFalse(all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(statistic)))

  def test_percentiles_of_one_sign(self):
    x = np.random.default_rng(3).uniform(2, 5, (2, 50, 10)).astype(np.float32)
    for sign in (1, -1):
      ends = np.sort(sign * np.asarray(_of('percentile', jnp.asarray(sign * x)).ends(90.0)))
      np.testing.assert_allclose(ends, np.percentile(x, [10, 90]), rtol=0.01)

  def test_percentiles_beyond_the_bins_are_those_of_the_last_bin(self):
    statistic = _of('percentile', jnp.array([[[-1e9, 1e-9, 0.0, 1e9]]]))
    np.testing.assert_allclose(statistic.ends(100), (-1e6, 1e6), rtol=1e-3)
    self.assertEqual(int(statistic.negative.sum() + statistic.positive.sum()), 4)


if __name__ == '__main__':
  absltest.main()
