"""Statistics of activations that merge: halves of a calibration set, or devices, give what the whole gives.

Each kind has `observed(x)`, x being [sequences, tokens, features], and all but the moving average have `merged(other)`;
both return a new statistic. Here are those of a range, which `ends(...)` reads; calibration.channels has those of every
channel, calibration.samples keeps activations themselves.

Extrema are those of everything, or, with a `shape` of the last axes of x, of each element of these: float32 [*shape].
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxquant.numerics import quantize

_SMALLEST, _LARGEST, _BINS = 1e-6, 1e6, 4096


def statistic(cls):
  """Class decorator: a frozen dataclass of arrays, registered as a pytree."""
  return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


def merge(first: Any, second: Any) -> Any:
  """Two states of one transform, trees of statistics, as one that has seen what both have."""
  return jax.tree.map(lambda a, b: a.merged(b), first, second, is_leaf=lambda x: hasattr(x, 'merged'))


def _extrema(x, first: int, kept: int):
  """(least, greatest) of `x` over its axes from `first` to all but the last `kept`."""
  return quantize.extrema(x, axis=tuple(range(first, x.ndim - kept)))


@statistic
class Extrema:
  """Least and greatest value. Merges exactly."""

  low: Any
  high: Any

  @classmethod
  def empty(cls, shape: tuple[int, ...] = ()) -> 'Extrema':
    """The statistic of no values."""
    return cls(jnp.full(shape, jnp.inf, jnp.float32), jnp.full(shape, -jnp.inf, jnp.float32))

  def observed(self, x) -> 'Extrema':
    """With the values of `x`."""
    return self.merged(Extrema(*_extrema(x.astype(jnp.float32), 0, self.low.ndim)))

  def merged(self, other: 'Extrema') -> 'Extrema':
    """With the values of both."""
    return Extrema(jnp.minimum(self.low, other.low), jnp.maximum(self.high, other.high))

  def ends(self):
    """(low, high)."""
    return self.low, self.high


@statistic
class AverageExtrema:
  """Mean over sequences of each one's least and greatest value. Merges to float32 rounding."""

  low_sum: Any
  high_sum: Any
  sequences: Any

  @classmethod
  def empty(cls, shape: tuple[int, ...] = ()) -> 'AverageExtrema':
    """The statistic of no sequences."""
    return cls(jnp.zeros(shape), jnp.zeros(shape), jnp.int32(0))

  def observed(self, x) -> 'AverageExtrema':
    """With the sequences of `x`."""
    low, high = (jnp.sum(ends, axis=0) for ends in _extrema(x.astype(jnp.float32), 1, self.low_sum.ndim))
    return self.merged(AverageExtrema(low, high, jnp.int32(x.shape[0])))

  def merged(self, other: 'AverageExtrema') -> 'AverageExtrema':
    """With the sequences of both."""
    return jax.tree.map(jnp.add, self, other)

  def ends(self):
    """(low, high)."""
    return self.low_sum / self.sequences, self.high_sum / self.sequences


@statistic
class MovingExtrema:
  """Moving average of each batch's extrema: depends on the order of batches, so there is no merge.

  Attributes:
    low, high: averages so far.
    batches: how many went in; the first one sets the averages.
    momentum: weight of the past.
  """

  low: Any
  high: Any
  batches: Any
  momentum: Any

  @classmethod
  def empty(cls, momentum: float, shape: tuple[int, ...] = ()) -> 'MovingExtrema':
    """The statistic of no batches."""
    return cls(jnp.zeros(shape), jnp.zeros(shape), jnp.int32(0), jnp.float32(momentum))

  def observed(self, x) -> 'MovingExtrema':
    """With the batch `x`."""
    keep = jnp.where(self.batches == 0, 0.0, self.momentum)
    low, high = _extrema(x.astype(jnp.float32), 0, self.low.ndim)
    mix = lambda old, new: keep * old + (1 - keep) * new
    return MovingExtrema(mix(self.low, low), mix(self.high, high), self.batches + 1, self.momentum)

  def ends(self):
    """(low, high)."""
    return self.low, self.high


@statistic
class LogHistogram:
  """Counts of magnitudes in 4,096 logarithmic bins from 1e-6 to 1e6, for each sign, hence percentiles. Merges exactly.

  A bin is 0.7 % wide. Magnitudes below the first bin count as the first, those above the last as the last. A count
  holds 4.3e9 elements.

  Attributes:
    negative, positive: counts, uint32.
    lost: float32, 0 as long as all values are finite, else NaN: no bin holds the others.
  """

  negative: Any
  positive: Any
  lost: Any

  @classmethod
  def empty(cls, shape: tuple[int, ...] = ()) -> 'LogHistogram':
    """The statistic of no values; there is none for parts of a tensor, so `shape` is ()."""
    assert not shape, shape
    return cls(jnp.zeros(_BINS, jnp.uint32), jnp.zeros(_BINS, jnp.uint32), jnp.float32(0))

  def observed(self, x) -> 'LogHistogram':
    """With the values of `x`."""
    x = x.astype(jnp.float32).reshape(-1)
    width = jnp.log(_LARGEST / _SMALLEST) / _BINS
    bins = jnp.floor(jnp.log(jnp.maximum(jnp.abs(x), _SMALLEST) / _SMALLEST) / width)
    bins = jnp.clip(bins, 0, _BINS - 1).astype(jnp.int32)
    count = lambda mask: jnp.zeros(_BINS, jnp.uint32).at[bins].add(mask.astype(jnp.uint32))
    lost = jnp.where(jnp.all(jnp.isfinite(x)), jnp.float32(0), jnp.nan)
    return self.merged(LogHistogram(count(x < 0), count(x >= 0), lost))

  def merged(self, other: 'LogHistogram') -> 'LogHistogram':
    """With the values of both."""
    return jax.tree.map(jnp.add, self, other)

  def ends(self, percentile: float):
    """(low, high): what fraction 1 - percentile / 100 of all values lies below, and above, to a bin's width."""
    edges = _SMALLEST * (_LARGEST / _SMALLEST) ** ((jnp.arange(_BINS) + 1) / _BINS)
    values = jnp.concatenate([-edges[::-1], edges])
    counts = jnp.concatenate([self.negative[::-1], self.positive]).astype(jnp.float32)
    tail = jnp.sum(counts) * (1 - percentile / 100)
    # Each end is counted from its own side: beside the sum of all others, a few values would be lost.
    first = lambda values, counts: values[jnp.argmax(jnp.cumsum(counts) > tail)]
    return first(values, counts), first(values[::-1], counts[::-1])


@statistic
class TokenExtrema:
  """How the tokens' least and greatest values are distributed: a count of each for every token. Merges exactly."""

  low: LogHistogram
  high: LogHistogram

  @classmethod
  def empty(cls, shape: tuple[int, ...] = ()) -> 'TokenExtrema':
    """The statistic of no tokens, whole ones: `shape` is ()."""
    return cls(LogHistogram.empty(shape), LogHistogram.empty(shape))

  def observed(self, x) -> 'TokenExtrema':
    """With the tokens of `x`."""
    low, high = _extrema(x, 2, 0)
    return TokenExtrema(self.low.observed(low), self.high.observed(high))

  def merged(self, other: 'TokenExtrema') -> 'TokenExtrema':
    """With the tokens of both."""
    return TokenExtrema(self.low.merged(other.low), self.high.merged(other.high))

  def ends(self, percentile: float):
    """(low, high): what `percentile` of the tokens do not go below, and as many not above, to a bin's width."""
    return self.low.ends(percentile)[0], self.high.ends(percentile)[1]


KINDS = {
    'minmax': Extrema.empty,
    'average': AverageExtrema.empty,
    'moving_average': functools.partial(MovingExtrema.empty, 0.9),
    'percentile': LogHistogram.empty,
    'token_wise': TokenExtrema.empty,
}
