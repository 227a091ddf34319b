"""What surrounds the data of a chart: axes, grid, tick labels, legend, and the colours everything shares."""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxquant.report import axes

# The colours of Okabe and Ito (2008), told apart by colour-blind readers too; yellow, unreadable on white, is left out.
_LIGHT = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#5b6570')
_DARK = ('#4ba3e3', '#f0803c', '#2fc79b', '#e39cc4', '#f0b93a', '#8accf5', '#a3adb8')
COLORS = len(_LIGHT)


def _palette(colors: Sequence[str]) -> str:
  return ''.join(f'--c{index}:{color};' for index, color in enumerate(colors))


# The colours on a light ground, as custom properties.
LIGHT = _palette(_LIGHT)
# What a chart is drawn with, wherever it stands.
SHAPES = ''.join(f'.c{index} {{ --c: var(--c{index}); }}\n' for index in range(COLORS)) + """
.chart text { fill: var(--muted); }
.chart .grid { stroke: var(--grid); stroke-width: 1; fill: none; }
.chart .frame { stroke: var(--axis); stroke-width: 1; fill: none; }
.chart .line { stroke: var(--c); stroke-width: 1.7; fill: none; stroke-linejoin: round; stroke-linecap: round; }
.chart .dashed { stroke-dasharray: 5 3; }
.chart .band { fill: var(--c); fill-opacity: .13; stroke: none; }
.chart .bars { fill: var(--c); fill-opacity: .38; stroke: var(--c); stroke-width: .8; stroke-linejoin: round; }
.chart .dot { fill: var(--c); stroke: transparent; stroke-width: 9; }
.chart .mark { fill: var(--c); stroke: var(--c); stroke-width: 1.5; }
.chart .open { fill: none; }
.chart .broken { stroke: var(--c); stroke-width: 1.7; fill: none; }
"""

STYLE = f""":root {{ {LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_palette(_DARK)} }} }}
svg.chart {{ display: block; width: 100%; height: auto; font-size: 11px; }}
""" + SHAPES

_CHARACTER = 6.1  # Width in pixels of an average character at the font size of `STYLE`.
_LEGEND_ROW = 17
_LABEL_LENGTH = 32
_TITLE = 16  # Room for the title of the y axis.
# A class and an outline around (0, 0) for each round through the palette, so that colours that come again differ. Open
# marks are larger, so that one around another mark leaves both visible.
_MARKS = (
    ('mark', 'M-3 0a3 3 0 1 0 6 0a3 3 0 1 0 -6 0'), ('mark open', 'M-4.6 0a4.6 4.6 0 1 0 9.2 0a4.6 4.6 0 1 0 -9.2 0'),
    ('mark', 'M-2.6 -2.6h5.2v5.2h-5.2Z'), ('mark open', 'M-4.4 -4.4h8.8v8.8h-8.8Z'))
_TOP, _RIGHT, _BOTTOM = 8, 14, 33  # Margins around the plot; the left one depends on the tick labels.
_EDGE = 4


class Scale(NamedTuple):
  """What an axis must show: `values` of any shape, 'linear' or 'log', and the ends that are fixed."""

  values: np.ndarray
  kind: str = 'linear'
  limits: tuple[float | None, float | None] = (None, None)


class Entry(NamedTuple):
  """An entry of the legend: a label, its colour, and whether it stands for marks instead of a line."""

  label: str
  color: int
  marks: bool = False


class Frame:
  """The axes `x` and `y` of a chart, the `height` of its plot in pixels, and the drawing of all that surrounds data.

  Args:
    size: width and height of the view box without the legend.
    x: what the x axis shows.
    y: what the y axis shows.
    x_label: what the x axis counts.
    legend: listed under the chart.
    y_label: what the y axis measures; empty where the title of the chart says it.
  """

  def __init__(
      self, size: tuple[int, int], x: Scale, y: Scale, x_label: str, legend: Sequence[Entry], y_label: str = ''):
    self._size, self._x_label, self._y_label, self._legend = size, x_label, y_label, _rows(legend, size[0])
    self.height = size[1] - _TOP - _BOTTOM
    self.y = axes.fit(y.values, y.kind, self.height, 0.0, y.limits)
    self._y_ticks = self.y.ticks(5 if self.height < 170 else 6)
    self._left = 8 + _CHARACTER * max((len(text) for text in axes.labels(self._y_ticks, self.y.scale)), default=0)
    self._left += _TITLE * bool(y_label)
    self._width = size[0] - self._left - _RIGHT
    self.x = axes.fit(x.values, x.kind, 0.0, self._width, x.limits, padded=False)

  def svg(self, content: str, description: str) -> str:
    """The chart around `content`, whose origin is the upper left corner of the plot."""
    grid, labels = [], []
    for tick, text in zip(self._y_ticks, axes.labels(self._y_ticks, self.y.scale)):
      y = pixel(self.y.place(tick))
      grid.append(f'M0 {y}H{pixel(self._width)}')
      labels.append(f'<text x="-6" y="{y}" dy=".33em" text-anchor="end">{text}</text>')
    room = -math.inf
    ticks = self.x.ticks(max(3, int(self._width // 62)))
    for tick, text in zip(ticks, axes.labels(ticks, self.x.scale)):
      x, half = float(self.x.place(tick)), _CHARACTER * len(text) / 2
      grid.append(f'M{pixel(x)} 0V{pixel(self.height)}')
      if x - half > room:
        labels.append(f'<text x="{pixel(x)}" y="{self.height + 14}" text-anchor="middle">{text}</text>')
        room = x + half + 4
    labels.append(
        f'<text x="{pixel(self._width / 2)}" y="{self.height + 28}" text-anchor="middle">'
        f'{_title(self._x_label, self.x)}</text>'
    )
    if self._y_label:
      labels.append(f'<text transform="translate({pixel(11 - self._left)} {pixel(self.height / 2)}) rotate(-90)" '
                    f'text-anchor="middle">{_title(self._y_label, self.y)}</text>')
    items = []
    for row, entries in enumerate(self._legend):
      y = self._size[1] + _LEGEND_ROW * row + 8
      for (label, color, marks), x in entries:
        line = f'<path class="{line_class(color)}" d="M{pixel(x + 4)} {y}h14"/>'
        items.append(
            (mark(color, x + 11, y) if marks else line)
            + f'<text x="{pixel(x + 22)}" y="{y}" dy=".33em">{html.escape(_short(label))}</text>'
        )
    total = self._size[1] + _LEGEND_ROW * len(self._legend)
    # The inner element cuts off what lies beyond the plot, without the identifier that a clip path would need. It is a
    # little larger than the plot, so that markers at the edges stay whole.
    size = f'width="{pixel(self._width + 2 * _EDGE)}" height="{self.height + 2 * _EDGE}"'
    box = f'viewBox="{-_EDGE} {-_EDGE} {pixel(self._width + 2 * _EDGE)} {self.height + 2 * _EDGE}"'
    inner = f'<svg x="{-_EDGE}" y="{-_EDGE}" {size} {box} overflow="hidden">{content}</svg>'
    return (
        f'<svg class="chart" viewBox="0 0 {self._size[0]} {total}" role="img" '
        f'aria-label="{html.escape(description)}"><g transform="translate({pixel(self._left)} {_TOP})">'
        f'<path class="grid" d="{"".join(grid)}"/><path class="frame" d="M0 {self.height}H{pixel(self._width)}"/>'
        f'{"".join(labels)}{inner}</g>{"".join(items)}</svg>'
    )


def line_class(color: int) -> str:
  """The CSS classes of a line; after the end of the palette its colours come again, dashed."""
  return f'line c{color % COLORS}' + (' dashed' if color >= COLORS else '')


def mark(color: int, x: float, y: float, title: str = '') -> str:
  """The mark of a point at (x, y); `title` (HTML) is shown under the pointer.

  After the end of the palette its colours come again as rings, then as squares, then as open squares.
  """
  kind, outline = _MARKS[color // COLORS % len(_MARKS)]
  return (f'<path class="{kind} c{color % COLORS}" transform="translate({pixel(x)} {pixel(y)})" d="{outline}">'
          f'{f"<title>{title}</title>" * bool(title)}</path>')


def pixel(value: float | np.ndarray) -> str:
  """A coordinate with one decimal."""
  return f'{round(float(value), 1) + 0.0:g}'


def _title(label: str, axis: axes.Axis) -> str:
  return html.escape(label + (', log scale' if axis.scale == 'log' else ''))


def _rows(legend: Sequence[Entry], width: float) -> list[list[tuple[Entry, float]]]:
  """Breaks a legend into rows of (entry, x)."""
  rows, used = [], math.inf
  for entry in legend:
    needed = 30 + _CHARACTER * len(_short(entry.label))
    if used + needed > width - 8:
      rows.append([])
      used = 0.0
    rows[-1].append((entry, used))
    used += needed
  return rows


def _short(label: str) -> str:
  return label if len(label) <= _LABEL_LENGTH else label[:_LABEL_LENGTH - 1] + '…'
