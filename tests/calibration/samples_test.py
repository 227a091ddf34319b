"""A sample of whole sequences is the same whatever the order and the split, and empty places count for nothing."""

import functools
import itertools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant.calibration import samples

_SHAPE = (3, 4)
_DTYPES = (np.float32, jnp.bfloat16)


def _activations(sequences, dtype=np.float32):
  return jnp.asarray(np.random.default_rng(0).normal(size=(sequences, *_SHAPE)).astype(dtype))


_observe = jax.jit(lambda sample, x, ids: sample.observed(x, ids))


def _of(x, *parts, places=5):
  """The sample of the sequences `x[ids]` of every part of `ids`, one part after the other."""
  observe = lambda sample, ids: _observe(sample, x[ids], jnp.asarray(ids))
  return functools.reduce(observe, parts, samples.SequenceSample.empty(places, _SHAPE, x.dtype))


def _assert_same(got, want):
  jax.tree.map(np.testing.assert_array_equal, got, want)
  assert got.activations.dtype == want.activations.dtype


class MergingTest(parameterized.TestCase):

  @parameterized.product(dtype=_DTYPES, sequences=[3, 5, 14], places=[1, 5])
  def test_any_order_and_split_gives_the_same_sample(self, dtype, sequences, places):
    x, rng = _activations(sequences, dtype), np.random.default_rng(1)
    take = functools.partial(_of, x, places=places)
    whole = take(np.arange(sequences))
    for _ in range(2):
      ids, cuts = rng.permutation(sequences), np.sort(rng.integers(0, sequences + 1, 2))
      parts = [part for part in np.split(ids, cuts) if len(part)]
      _assert_same(take(*parts), whole)
      for order in itertools.permutations([take(part) for part in parts]):
        _assert_same(functools.reduce(samples.SequenceSample.merged, order), whole)
      _assert_same(take().merged(whole), whole)

  def test_holds_the_sequences_of_the_smallest_hashes_whole(self):
    x = _activations(40, jnp.bfloat16)
    sample = _of(x, np.arange(40))
    chosen = np.argsort(samples.hash_ids(np.arange(40)))[:5]
    np.testing.assert_array_equal(sample.activations, x[chosen])
    self.assertEqual(sample.activations.dtype, jnp.bfloat16)
    np.testing.assert_array_equal(sample.hashes, np.sort(samples.hash_ids(np.arange(40)))[:5])


class WeightsTest(absltest.TestCase):

  def test_places_that_stay_empty_weigh_nothing(self):
    x = _activations(2)
    sample = _of(x, np.arange(2))
    np.testing.assert_array_equal(sample.weights(), np.reshape([1, 1, 0, 0, 0], (5, 1, 1)))
    self.assertEqual(_of(x).weights().sum(), 0)

  def test_mean_square_is_over_the_sequences_that_are_there(self):
    x = _activations(2)
    sample, rng = _of(x, np.arange(2)), np.random.default_rng(2)
    for shape in ((5, 3, 4), (5, 3, 2, 4)):
      difference = rng.normal(size=shape).astype(np.float32)
      want = np.mean(np.sum(np.square(difference[:2]).reshape(2, 3, -1), -1))
      difference[2:] = np.nan  # what a module may make of zeros
      np.testing.assert_allclose(sample.mean_square(jnp.asarray(difference)), want, rtol=1e-6)
    self.assertEqual(_of(x).mean_square(jnp.ones((5, 3, 4))), 0)


class HashTest(absltest.TestCase):

  def test_identities_keep_apart_and_none_is_that_of_an_empty_place(self):
    hashes = np.asarray(samples.hash_ids(np.arange(2**20, dtype=np.int32)))
    self.assertLen(np.unique(hashes), 2**20)
    self.assertLess(hashes.max(), 0xFFFFFFFF)
    self.assertEqual(hashes.dtype, np.uint32)

  def test_a_sample_is_spread_over_the_calibration_set(self):
    """Each quarter of the identities has its share of the smallest hashes, to four standard deviations."""
    smallest = np.argsort(samples.hash_ids(np.arange(2**14)))[:1024]
    counts = np.histogram(smallest, bins=4, range=(0, 2**14))[0]
    np.testing.assert_allclose(counts, 256, atol=4 * np.sqrt(256 * 0.75))

  def test_the_one_identity_that_hashes_to_the_empty_place_moves_aside(self):
    # The hash is a bijection but for that: xorshifts and odd factors, undone in turn.
    x = 0xFFFFFFFF
    x = (x ^ x >> 16) * pow(0xC2B2AE35, -1, 2**32) % 2**32
    x = (x ^ x >> 13 ^ x >> 26) * pow(0x85EBCA6B, -1, 2**32) % 2**32
    x ^= x >> 16
    self.assertEqual(int(samples.hash_ids(np.uint32(x))), 0xFFFFFFFE)


if __name__ == '__main__':
  absltest.main()
