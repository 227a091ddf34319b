"""Small charts as inline SVG: lines over steps, points, and histograms.

A chart is one `<svg>` element without identifiers, scripts or outside references. It scales with the width of its
container, and takes its colours from the custom properties that `frame.STYLE` defines. Equal input gives equal text.
"""

import html
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxquant.report import frame
from jaxquant.report import tables

LARGE = (440, 225)
SMALL = (340, 190)
TINY = (260, 165)

_MAXIMUM_POINTS = 400
_MARKED_POINTS = 40
_MAXIMUM_BINS = 160


class Series(NamedTuple):
  """One line: float arrays of shape [points]; `low` and `high`, if given, bound a band around it.

  `color` counts through the palette; after its end, lines are dashed and marks have other shapes. `drawn` is 'both' for
  a line whose points are marked where they are few, 'line' for one without marks, 'marks' for points alone.
  """

  label: str
  color: int
  x: np.ndarray
  y: np.ndarray
  low: np.ndarray | None = None
  high: np.ndarray | None = None
  drawn: str = 'both'


class Bars(NamedTuple):
  """One histogram: `counts` of shape [n] over `edges` of shape [n + 1]."""

  label: str
  color: int
  edges: np.ndarray
  counts: np.ndarray


def line_chart(
    series: Sequence[Series],
    title: str,
    *,
    x_label: str = 'step',
    y_label: str = '',
    x_scale: str = 'linear',
    y_scale: str = 'linear',
    y_limits: tuple[float | None, float | None] = (None, None),
    size: tuple[int, int] = SMALL,
    legend: bool = False,
) -> str:
  """Draws lines and points.

  Lines break where a value is not finite, and a cross at the upper edge marks the beginning of such a gap. Long series
  are thinned out to 400 points that keep the extremes. Lines with the same label share one entry of the legend.

  Args:
    series: the lines; those of equal labels should have equal colours.
    title: what the chart shows, for readers who do not see it.
    x_label: what the x axis counts.
    y_label: what the y axis measures, written along it; by default nothing is, and the title has to say it.
    x_scale: 'linear' or 'log'; zeros get a place of their own at the left of a log axis.
    y_scale: 'linear' or 'log', likewise.
    y_limits: fixed ends of the y axis, None where the values decide; what lies beyond is cut off.
    size: width and height of the view box, in units of the font size's pixels.
    legend: whether to list the labels under the chart.

  Returns:
    An `<svg>` element.
  """
  every_y = [part for line in series for part in (line.y, line.low, line.high) if part is not None]
  x_axis = frame.Scale(_joined([line.x for line in series]), x_scale)
  y_axis = frame.Scale(_joined(every_y), y_scale, y_limits)
  chart = frame.Frame(size, x_axis, y_axis, x_label, _entries(series) if legend else [], y_label)
  bands, lines = [], []
  for line in series:
    kept = _thinned(line.y)
    x, y = chart.x.place(line.x[kept]), chart.y.place(line.y[kept])
    if line.low is not None and line.high is not None:
      bands.append(_band(x, chart.y.place(line.low[kept]), chart.y.place(line.high[kept]), line.color))
    lines.append((_marks if line.drawn == 'marks' else _line)(line, kept, x, y, x_label))
  ends = '; '.join(_summary(line) for line in series if line.y.size)
  return chart.svg(''.join(bands + lines), f'{title}. {ends}.')


def histogram(
    layers: Sequence[Bars],
    title: str,
    *,
    x_limits: tuple[float | None, float | None] = (None, None),
    size: tuple[int, int] = SMALL,
    legend: bool = False,
) -> str:
  """Draws overlaid histograms as densities on a logarithmic axis, so that single outliers stay visible.

  Args:
    layers: the histograms; each is normalized by its own total, so that bins and totals may differ.
    title: what the chart shows, for readers who do not see it.
    x_limits: fixed ends of the x axis, None where the edges decide.
    size: width and height of the view box.
    legend: whether to list the labels under the chart.

  Returns:
    An `<svg>` element.
  """
  coarse = [_coarse(layer) for layer in layers]
  densities = [layer.counts / np.diff(layer.edges) / max(layer.counts.sum(), 1) for layer in coarse]
  density = _joined(densities)
  x_axis = frame.Scale(_joined([layer.edges for layer in coarse]), limits=x_limits)
  y_axis = frame.Scale(density[density > 0], 'log')
  chart = frame.Frame(size, x_axis, y_axis, 'value', _entries(layers) if legend else [])
  shapes = []
  for layer, heights in zip(coarse, densities):
    x, y = chart.x.place(layer.edges), chart.y.place(heights)
    outline = ''.join(
        f'M{frame.pixel(x[run[0]])} {chart.height}'
        + ''.join(f'V{frame.pixel(y[index])}H{frame.pixel(x[index + 1])}' for index in run) + f'V{chart.height}Z'
        for run in _stretches(y)
    )
    shapes.append(
        f'<path class="bars c{layer.color % frame.COLORS}" d="{outline}"><title>{html.escape(layer.label)}: '
        f'{_range(layer)}</title></path>'
    )
  return chart.svg(''.join(shapes), f'{title}. ' + '; '.join(f'{layer.label}: {_range(layer)}' for layer in layers))


def _entries(items: Sequence[Series | Bars]) -> list[frame.Entry]:
  marks = lambda item: getattr(item, 'drawn', '') == 'marks'
  return list(dict.fromkeys(frame.Entry(item.label, item.color, marks(item)) for item in items if item.label))


def _summary(line: Series) -> str:
  return f'{line.label}: {_count(line)}' if line.drawn == 'marks' else f'{line.label} ends at {_last(line.y)}'


def _count(line: Series) -> str:
  return f'{line.y.size} point' + 's' * (line.y.size != 1)


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
  return np.concatenate([np.ravel(part) for part in parts]) if parts else np.zeros(0)


def _last(values: np.ndarray) -> str:
  return tables.format_number(float(values[-1]))


def _range(layer: Bars) -> str:
  filled = np.flatnonzero(layer.counts)
  if not filled.size:
    return 'no values'
  low, high = layer.edges[filled[0]], layer.edges[filled[-1] + 1]
  return f'values from {tables.format_number(float(low))} to {tables.format_number(float(high))}'


def _thinned(values: np.ndarray) -> np.ndarray:
  """Indices of at most 400 points: of each stretch the extremes, and the first value that is not finite."""
  if values.size <= _MAXIMUM_POINTS:
    return np.arange(values.size)
  kept = {0, values.size - 1}
  for stretch in np.array_split(np.arange(values.size), (_MAXIMUM_POINTS - 2) // 3):
    finite = np.isfinite(values[stretch])
    if finite.any():
      known = stretch[finite]
      kept |= {int(known[values[known].argmin()]), int(known[values[known].argmax()])}
    if not finite.all():
      kept.add(int(stretch[~finite][0]))
  return np.asarray(sorted(kept))


def _coarse(layer: Bars) -> Bars:
  """The histogram with neighbouring bins added up until at most 160 are left."""
  factor = -(-layer.counts.size // _MAXIMUM_BINS)
  starts = np.arange(0, layer.counts.size, factor)
  return layer._replace(
      edges=np.append(layer.edges[starts], layer.edges[-1]), counts=np.add.reduceat(layer.counts, starts)
  )


def _stretches(*parts: np.ndarray) -> list[np.ndarray]:
  """Runs of indices at which all parts are finite."""
  known = np.flatnonzero(np.all(np.isfinite(parts), axis=0))
  return [run for run in np.split(known, np.flatnonzero(np.diff(known) > 1) + 1) if run.size]


def _path(x: np.ndarray, y: np.ndarray) -> str:
  return 'M' + 'L'.join(f'{frame.pixel(a)} {frame.pixel(b)}' for a, b in zip(x, y))


def _band(x: np.ndarray, low: np.ndarray, high: np.ndarray, color: int) -> str:
  outlines = [
      _path(np.r_[x[run], x[run][::-1]], np.r_[low[run], high[run][::-1]]) + 'Z'
      for run in _stretches(x, low, high) if run.size > 1
  ]
  return f'<path class="band c{color % frame.COLORS}" d="{"".join(outlines)}"/>' if outlines else ''


def _line(line: Series, kept: np.ndarray, x: np.ndarray, y: np.ndarray, x_label: str) -> str:
  label, color = html.escape(line.label), line.color % frame.COLORS
  runs = _stretches(x, y)
  drawn = ''.join(_path(x[run], y[run]) for run in runs if run.size > 1)
  body = ''
  if drawn:
    title = f'<title>{label}: {_count(line)}, last {_last(line.y)}</title>'
    body = f'<path class="{frame.line_class(line.color)}" d="{drawn}">{title}</path>'
  all_marked = runs and kept.size <= _MARKED_POINTS and line.drawn == 'both'
  dots = np.concatenate(runs) if all_marked else [run[0] for run in runs if run.size == 1]
  for index in dots:
    body += (
        f'<circle class="dot c{color}" cx="{frame.pixel(x[index])}" cy="{frame.pixel(y[index])}" r="2.2">'
        f'<title>{label}, {_point(line, kept[index], x_label)}</title></circle>'
    )
  gaps = ~np.isfinite(line.y[kept]) & np.isfinite(x)
  for index in np.flatnonzero(gaps & ~np.r_[False, gaps[:-1]]):
    body += (
        f'<path class="broken c{color}" d="M{frame.pixel(x[index] - 4)} 2l8 8m0 -8l-8 8"><title>{label}, '
        f'{_point(line, kept[index], x_label)}</title></path>'
    )
  return body


def _marks(line: Series, kept: np.ndarray, x: np.ndarray, y: np.ndarray, x_label: str) -> str:
  """Points alone; those that an axis has no place for are left out."""
  label = html.escape(line.label)
  return ''.join(frame.mark(line.color, x[index], y[index], f'{label}, {_point(line, kept[index], x_label)}')
                 for run in _stretches(x, y) for index in run)


def _point(line: Series, index: int, x_label: str) -> str:
  return f'{html.escape(x_label)} {line.x[index]:,.10g}: {tables.format_number(float(line.y[index]))}'
