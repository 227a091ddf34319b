"""Training batches out of a flat token array: shuffled, endless, seekable, sharded over processes.

An array of n tokens holds (n - 1) // length windows of `length + 1` tokens. Neighbours share one token, so that every
token but the first is predicted exactly once an epoch; an incomplete window at the end is left out. Every epoch visits
all windows once, in a new order that the seed determines, and a batch may span two epochs.

Global batch k holds the same windows in the same order however many processes share it: of its rows, process p of P
holds the p-th of P equal, contiguous parts. Hence a run may be resumed with another number of processes.
"""

import grain
import numpy as np

from jaxquant import errors


def num_windows(num_tokens: int, length: int) -> int:
  """Returns how many windows of `length` predicted tokens an array of `num_tokens` tokens holds: those of one epoch."""
  return max(num_tokens - 1, 0) // length


def batches(
    tokens: np.ndarray, *, batch_size: int, length: int, seed: int, process_index: int = 0, process_count: int = 1,
    prefetch: int = 8,
) -> grain.DatasetIterator[dict[str, np.ndarray]]:
  """Returns an endless iterator over this process's part of the training batches.

  Each element is `{'tokens': int32[batch_size // process_count, length + 1]}`. The iterator's `get_state()` is a
  JSON-compatible dict that counts batches and knows nothing of processes; `set_state()` continues from it in constant
  time, and Grain's checkpoint handlers for Orbax accept the iterator. A state is valid for the same tokens, seed,
  length and batch size.

  Args:
    tokens: integer array [tokens], for instance the memory map of a token file.
    batch_size: windows in a batch over all processes.
    length: predicted tokens in a window.
    seed: determines the order of the windows; not negative.
    process_index: which process this is.
    process_count: the number of processes that share every batch.
    prefetch: batches that a thread prepares ahead; 0 prepares each on demand in the caller's thread.

  Raises:
    errors.UserError: there are fewer windows than a batch needs, the processes cannot share a batch evenly, or an
      argument is out of range.
  """
  if min(batch_size, length) < 1 or min(seed, prefetch) < 0 or not 0 <= process_index < process_count:
    raise errors.UserError(
        'Batches need batch_size and length of at least 1, seed and prefetch of at least 0, and 0 <= process_index < '
        f'process_count, not {batch_size=}, {length=}, {seed=}, {prefetch=}, {process_index=}, {process_count=}.')
  if batch_size % process_count:
    raise errors.UserError(f'A batch of {batch_size} windows cannot be shared evenly by {process_count} processes.')
  windows = num_windows(len(tokens), length)
  if windows < batch_size:
    raise errors.UserError(
        f'{len(tokens)} tokens hold only {windows} windows of {length} tokens, fewer than one batch of {batch_size}; '
        'use more text, shorter windows or a smaller batch.')
  # Every process shuffles the indices of the whole batch, which is cheap, and reads no windows but its own.
  rows = batch_size // process_count
  mine = slice(process_index * rows, (process_index + 1) * rows)
  dataset = (
      _shuffled(windows, seed).repeat().batch(batch_size)
      .map(lambda indices: {'tokens': _gather(tokens, indices[mine], length, length + 1)}))
  # One thread suffices, and more would only contend for Python's global lock.
  options = grain.ReadOptions(num_threads=min(prefetch, 1), prefetch_buffer_size=prefetch)
  return iter(dataset.to_iter_dataset(options))


def calibration_windows(tokens: np.ndarray, *, count: int, length: int, seed: int) -> np.ndarray:
  """Samples `count` windows that do not overlap: int32 [count, length], in random order. A larger count adds windows.

  Args:
    tokens: integer array [tokens].
    count: the number of windows.
    length: tokens in a window.
    seed: determines the sample; not negative.

  Raises:
    errors.UserError: there are fewer windows than `count`, or an argument is out of range.
  """
  if min(count, length) < 1 or seed < 0:
    raise errors.UserError(
        f'A sample needs count and length of at least 1 and a seed of at least 0, not {count=}, {length=}, {seed=}.')
  shuffled = _shuffled(check_windows(len(tokens), count, length), seed)
  return _gather(tokens, np.array([shuffled[index] for index in range(count)]), length, length)


def check_windows(tokens: int, count: int, length: int) -> int:
  """How many windows of `length` so many tokens hold; raises `UserError` if they are fewer than `count`."""
  windows = tokens // length
  if windows < count:
    raise errors.UserError(
        f'{tokens} tokens hold only {windows} windows of {length} tokens, fewer than the {count} asked for; '
        'use more text, shorter windows or fewer of them.')
  return windows


def _shuffled(windows: int, seed: int) -> grain.MapDataset:
  # Grain adds the epoch to the seed; hashed first, neighbouring seeds do not visit the same orders an epoch apart.
  return grain.MapDataset.range(windows).shuffle(int(np.random.SeedSequence(seed).generate_state(1)[0]))


def _gather(tokens: np.ndarray, indices: np.ndarray, stride: int, length: int) -> np.ndarray:
  """Returns the windows that begin at `indices * stride`: int32 [indices, length]."""
  starts = np.asarray(indices, np.int64) * stride
  return np.asarray(tokens)[starts[:, None] + np.arange(length)].astype(np.int32)
