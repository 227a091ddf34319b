"""Batches depend on tokens, seed and position alone: not on how far the run came in one go, nor on the processes."""

import itertools
import json

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from jaxquant import errors
from jaxquant.data import loader

_LENGTH = 5
_BATCH_SIZE = 8
# Distinct tokens, so that a window is known by any of its tokens. The 42 windows are no multiple of the batch size, and
# one token is missing to a 43rd.
_TOKENS = (np.arange(43 * _LENGTH) + 60_000).astype(np.uint32)


def _batches(tokens=_TOKENS, **overrides):
  return loader.batches(tokens, **({'batch_size': _BATCH_SIZE, 'length': _LENGTH, 'seed': 3} | overrides))


def _take(iterator, count):
  return [batch['tokens'] for batch in itertools.islice(iterator, count)]


class LoaderTest(parameterized.TestCase):

  def test_batches_are_windows_of_the_tokens(self):
    for batch in _take(_batches(_TOKENS.astype(np.uint16)), 20):
      self.assertEqual((batch.shape, batch.dtype), ((_BATCH_SIZE, _LENGTH + 1), np.int32))
      starts = batch[:, 0] - 60_000
      np.testing.assert_array_equal(starts % _LENGTH, 0)
      np.testing.assert_array_equal(batch, 60_000 + starts[:, None] + np.arange(_LENGTH + 1))

  def test_every_epoch_covers_every_window_once_in_a_new_order(self):
    windows = loader.num_windows(len(_TOKENS), _LENGTH)
    self.assertEqual(windows, 42)
    starts = np.concatenate(_take(_batches(), 4 * windows // _BATCH_SIZE))[:, 0]
    epochs = starts.reshape(4, windows)
    for epoch in epochs:
      np.testing.assert_array_equal(np.sort(epoch), _TOKENS[:210:_LENGTH])
    orders = {tuple(epoch) for epoch in (*epochs, np.sort(epochs[0]))}
    self.assertLen(orders, 5)

  def test_every_token_but_the_first_is_predicted_once(self):
    predicted = np.concatenate(_take(_batches(batch_size=42), 1))[:, 1:]
    np.testing.assert_array_equal(np.sort(predicted.ravel()), _TOKENS[1:211])

  def test_seed_determines_the_order(self):
    # Seeds next to each other must not give the same epochs, one later than the other.
    first, again, other = (np.stack(_take(_batches(batch_size=42, seed=seed), 3)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    for left, right in itertools.product(first, other):
      self.assertFalse(np.array_equal(left, right))

  @parameterized.product(process_count=[2, 4], prefetch=[0, 3])
  def test_processes_hold_consecutive_parts_of_the_same_batches(self, process_count, prefetch):
    parts = [
        _take(_batches(process_index=index, process_count=process_count, prefetch=prefetch), 12)
        for index in range(process_count)]
    for whole, *shares in zip(_take(_batches(), 12), *parts):
      np.testing.assert_array_equal(whole, np.concatenate(shares))

  @parameterized.parameters(0, 1, 5, 6, 23)
  def test_seeking_equals_a_straight_run_with_any_number_of_processes(self, position):
    straight = _take(_batches(), position + 4)
    interrupted = _batches()
    _take(interrupted, position)
    state = json.loads(json.dumps(interrupted.get_state()))
    for process_count in (1, 2):
      resumed = [_batches(process_index=index, process_count=process_count) for index in range(process_count)]
      for iterator in resumed:
        next(iterator)
        iterator.set_state(state)
      shares = zip(*[_take(iterator, 4) for iterator in resumed])
      np.testing.assert_array_equal(straight[position:], [np.concatenate(share) for share in shares])
      self.assertEqual({str(iterator.get_state()) for iterator in resumed}, {str(_after(position + 4))})

  def test_memory_map_and_array_give_the_same(self):
    path = self.create_tempdir().full_path + '/tokens.npy'
    np.save(path, _TOKENS)
    np.testing.assert_array_equal(_take(_batches(np.load(path, mmap_mode='r')), 7), _take(_batches(), 7))

  @parameterized.parameters(
      ({'batch_size': 43}, '215 tokens hold only 42 windows of 5 tokens, fewer than one batch of 43'),
      ({'length': 300}, '215 tokens hold only 0 windows of 300 tokens, fewer than one batch of 8'),
      ({'process_count': 3}, 'batch of 8 windows cannot be shared evenly by 3 processes'),
      ({'process_count': 2, 'process_index': 2}, 'process_index=2, process_count=2'),
      ({'batch_size': 0}, 'batch_size=0'), ({'length': 0}, 'length=0'), ({'seed': -1}, 'seed=-1'),
      ({'prefetch': -1}, 'prefetch=-1'))
  def test_refuses_batches_that_cannot_be(self, overrides, message):
    with self.assertRaisesRegex(errors.UserError, message):
      _batches(**overrides)

  def test_calibration_windows_are_a_sample_without_overlap(self):
    sample = loader.calibration_windows(_TOKENS, count=20, length=10, seed=0)
    self.assertEqual((sample.shape, sample.dtype), ((20, 10), np.int32))
    starts = sample[:, 0] - 60_000
    np.testing.assert_array_equal(starts % 10, 0)
    self.assertLen(set(starts.tolist()), 20)
    self.assertFalse(np.array_equal(starts, np.sort(starts)))
    np.testing.assert_array_equal(sample, 60_000 + starts[:, None] + np.arange(10))
    np.testing.assert_array_equal(sample[:7], loader.calibration_windows(_TOKENS, count=7, length=10, seed=0))
    self.assertFalse(np.array_equal(sample, loader.calibration_windows(_TOKENS, count=20, length=10, seed=1)))
    whole = loader.calibration_windows(_TOKENS, count=21, length=10, seed=0)
    np.testing.assert_array_equal(np.sort(whole.ravel()), _TOKENS[:210])

  @parameterized.parameters(
      ({'count': 22}, '215 tokens hold only 21 windows of 10 tokens, fewer than the 22'), ({'count': 0}, 'count=0'),
      ({'length': 0}, 'length=0'), ({'seed': -1}, 'seed=-1'))
  def test_refuses_samples_that_cannot_be(self, overrides, message):
    with self.assertRaisesRegex(errors.UserError, message):
      loader.calibration_windows(_TOKENS, **({'count': 4, 'length': 10, 'seed': 0} | overrides))


def _after(position):
  iterator = _batches()
  _take(iterator, position)
  return iterator.get_state()


if __name__ == '__main__':
  absltest.main()
