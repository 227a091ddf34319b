"""Axes of a chart: from values to pixels, and ticks that people read easily."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Share of a logarithmic axis set aside for zeros, which have no logarithm but do occur: step 0, an empty bin.
_ZERO_SHARE = 0.07
_PADDING = 0.04
_PLAIN = re.compile(r'-?[\d.]+')


class Axis(NamedTuple):
  """One axis: `scale` 'linear' or 'log', the domain `low`..`high`, and the pixels `start`..`stop` that it covers.

  With `zero` (log only) the values 0 sit at `start`, and the positive ones begin a little further on.
  """

  scale: str
  low: float
  high: float
  start: float
  stop: float
  zero: bool = False

  def place(self, values: np.ndarray | float) -> np.ndarray:
    """Pixels (float64, shape of `values`); NaN for what the axis cannot show: not finite, or negative on a log axis."""
    values = np.asarray(values, np.float64)
    low, high, shown = self.low, self.high, np.where(np.isfinite(values), values, np.nan)
    start = self.start
    if self.scale == 'log':
      low, high, shown = math.log(low), math.log(high), np.log(np.where(shown > 0, shown, np.nan))
      start += _ZERO_SHARE * (self.stop - self.start) * self.zero
    pixels = start + (shown - low) / (high - low) * (self.stop - start)
    return np.where(values == 0, self.start, pixels) if self.zero else pixels

  def ticks(self, count: int) -> list[float]:
    """About `count` round values within the domain; a log axis that holds zeros begins with 0."""
    if self.scale == 'linear':
      return linear_ticks(self.low, self.high, count)
    return [0.0] * self.zero + log_ticks(self.low, self.high, count)


def fit(
    values: np.ndarray,
    scale: str,
    start: float,
    stop: float,
    limits: tuple[float | None, float | None] = (None, None),
    padded: bool = True,
) -> Axis:
  """The axis that shows all finite values.

  Args:
    values: what to show, of any shape; values that are not finite are ignored.
    scale: 'linear', or 'log', which falls back to 'linear' if there is no positive value.
    start: pixel of the low end.
    stop: pixel of the high end.
    limits: fixed low and high ends of the domain; None leaves an end to the values.
    padded: whether to leave a little space beyond the values on ends that are not fixed.
  """
  finite = values[np.isfinite(values)]
  positive = finite[finite > 0]
  if scale == 'log' and positive.size:
    low, high = math.log(positive.min()), math.log(positive.max())
    zero = bool((finite == 0).any())
  else:
    scale, zero = 'linear', False
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
  ends = [end if end is None or scale == 'linear' else math.log(end) for end in limits]
  low, high = low if ends[0] is None else ends[0], high if ends[1] is None else ends[1]
  if high - low <= 1e-9 * max(abs(low), abs(high)):
    margin = 0.5 if scale == 'log' else abs(low) * 0.1 or 1.0
    low, high = low - margin, high + margin
  space = _PADDING * (high - low) * padded
  low -= space * (ends[0] is None and not zero)
  high += space * (ends[1] is None)
  return Axis(scale, math.exp(low), math.exp(high), start, stop, zero) if scale == 'log' else Axis(
      scale, low, high, start, stop)


def spread(values: np.ndarray) -> str:
  """The scale that suits the values: 'log' if none is negative and the positive ones span more than a factor of 10."""
  finite = values[np.isfinite(values)]
  positive = finite[finite > 0]
  wide = positive.size and positive.max() > 10 * positive.min()
  return 'log' if wide and finite.min() >= 0 else 'linear'


def linear_ticks(low: float, high: float, count: int) -> list[float]:
  """Multiples of 1, 2 or 5 times a power of ten within [low, high], as close to `count` of them as there are."""
  magnitude = 10.0 ** math.floor(math.log10((high - low) / count))
  steps = (factor * magnitude for factor in (1, 2, 5, 10))
  step = min(steps, key=lambda step: abs(math.log((high - low) / step / count)))
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  decimals = max(0, 1 - math.floor(math.log10(step)))
  return [round(index * step, decimals) for index in range(first, last + 1)]


def log_ticks(low: float, high: float, count: int) -> list[float]:
  """Powers of ten within [low, high], with 2 and 5 or 3 times them as far as `count` allows, or every few of them.

  A domain too narrow for two of them gets linear ticks.
  """
  exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
  for factors in ((1, 2, 5), (1, 3), (1,)):
    ticks = [factor * 10.0**exponent for exponent in exponents for factor in factors]
    ticks = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
    if len(ticks) <= count:
      break
  if len(ticks) < 2:
    return [tick for tick in linear_ticks(low, high, count) if tick > 0]
  return ticks[::math.ceil(len(ticks) / count)]


def labels(ticks: Sequence[float], scale: str) -> list[str]:
  """Short labels: 0, 0.05, 2e-4, 500, 1.5k, 20k, 3M; those of a linear axis have equally many decimals."""
  texts = [_label(tick) for tick in ticks]
  if scale == 'linear' and all(_PLAIN.fullmatch(text) for text in texts):
    decimals = max((len(text.partition('.')[2]) for text in texts), default=0)
    texts = [f'{tick:.{decimals}f}' if tick else '0' for tick in ticks]
  return texts


def _label(value: float) -> str:
  size = abs(value)
  if size and not 1e-2 <= size < 1e9:
    exponent = math.floor(math.log10(size) + 1e-12)
    return f'{value / 10.0**exponent:.4g}e{exponent}'
  for unit, suffix in ((1e6, 'M'), (1e3, 'k')):
    if size >= unit:
      return f'{value / unit:.6g}{suffix}'
  return f'{value:.6g}'
