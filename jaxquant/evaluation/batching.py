"""Texts of different lengths in batches of few shapes, so that few programs are compiled for them."""

from collections.abc import Iterator, Sequence

import numpy as np

BATCH_TOKENS = 8192  # evaluated at once, about, unless told otherwise
_LEAST_WIDTH = 16


def filled(length: int) -> int:
  """The width to which a length is filled up: the next power of two, 16 at least."""
  return max(_LEAST_WIDTH, _power(length))


def rows(texts: Sequence[Sequence[int]], count: int, width: int) -> np.ndarray:
  """The tokens of at most `count` texts of at most `width` each, and zeros behind them: int32 [count, width]."""
  made = np.zeros((count, width), np.int32)
  for row, text in zip(made, texts):
    row[:len(text)] = text
  return made


def by_length(lengths: Sequence[int], most: int, batch_tokens: int) -> Iterator[tuple[list[int], int, int]]:
  """Yields (indices of texts that are alike in length, rows of their batch, its width), the longest texts first.

  Args:
    lengths: tokens of each text.
    most: the largest width.
    batch_tokens: rows times width, at most, unless one row exceeds it.
  """
  widths = [min(filled(length), most) for length in lengths]
  for width in sorted(set(widths), reverse=True):
    alike = [i for i, other in enumerate(widths) if other == width]
    count = min(max(1, batch_tokens // width), _power(len(alike)))
    for start in range(0, len(alike), count):
      yield alike[start : start + count], count, width


def _power(number: int) -> int:
  """The next power of two."""
  return 1 << (int(number) - 1).bit_length()
