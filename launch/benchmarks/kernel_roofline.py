"""The roofline of a benchmark of kernels: what each column reaches beside what memory and tensor cores allow.

After Williams, Waterman and Patterson (2009), "Roofline: an insightful visual performance model for multicore
architectures". A product of M tokens, N outputs and K inputs is 2 M N K operations; its intensity is that number over
the bytes that have to be moved, which the columns count.
"""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any, NamedTuple

import numpy as np

from jaxquant import errors
from jaxquant.report import frame
from jaxquant.report import picture
from jaxquant.report import svg
from launch import workdir
from launch.benchmarks import kernel_columns

_SIZE = (680, 400)
_TERA = 1e12
_ROOF = frame.COLORS - 1  # Grey; what is measured has the other colours.
_BEYOND = 1.6  # How far the axis goes beyond the outermost points.
_DEFAULT_ENDS = (10.0, 10_000.0)  # Of the axis where nothing was measured.


class Roofs(NamedTuple):
  """What the hardware allows: bytes a second that a copy moves, and int8 operations a second, twice those of bf16."""

  bandwidth: float
  peak: float

  def whole(self, ends: tuple[float, float]) -> np.ndarray:
    """Corners [corners, 2] of int8's roof between two intensities: operations a byte, operations a second."""
    intensity = np.unique(np.clip([ends[0], self.peak / self.bandwidth, ends[1]], *ends))
    return np.stack([intensity, np.minimum(intensity * self.bandwidth, self.peak)], 1)

  def of_bf16(self, ends: tuple[float, float]) -> np.ndarray:
    """The same of what of bf16's roof is not int8's too; no corners where the ends are below it."""
    half = self.peak / 2
    start = max(ends[0], half / self.bandwidth)
    return np.array([[start, half], [ends[1], half]] if start < ends[1] else []).reshape(-1, 2)


def read(path: pathlib.Path) -> dict[str, Any]:
  """What an earlier run wrote by `--output`; raises `UserError` for a file that holds nothing of the kind."""
  result = workdir.read_json(path)
  try:
    draw(result)
  except (LookupError, TypeError, ValueError, AttributeError, ZeroDivisionError):
    raise errors.UserError(f'{path} holds no rows of the benchmark of kernels') from None
  return result


def draw(result: Mapping[str, Any], names: Sequence[str] = ()) -> str:
  """The text of an SVG file.

  Args:
    result: what `kernels.run` returns. What failed, and columns of torch, whose bytes are not counted, are left out.
    names: the columns to draw; none: all.
  """
  roofs = Roofs(result['copy_bytes_per_second'], result['int8_peak'])
  found = {name: array for name in names or columns(result) if (array := points(result, name)).size}
  every = np.concatenate([*found.values(), np.zeros((0, 2))])[:, 0]
  ends = (every.min() / _BEYOND, every.max() * _BEYOND) if every.size else _DEFAULT_ENDS
  lines = [_roof('copy bandwidth, then int8 peak', _ROOF, roofs.whole(ends))]
  half = roofs.of_bf16(ends)
  if half.size and any(_of_bf16(name) for name in found):
    lines.append(_roof('bf16 peak', _ROOF + frame.COLORS, half))
  lines += [svg.Series(name, _color(index), array[:, 0], array[:, 1] / _TERA, drawn='marks')
            for index, (name, array) in enumerate(found.items())]
  chart = svg.line_chart(
      lines, 'Roofline of kernels', x_label='arithmetic intensity, operations per byte moved',
      y_label='achieved, 10¹² operations per second', x_scale='log', y_scale='log', size=_SIZE, legend=True)
  return picture.standalone(chart, f'Quantized matmuls on one {result["environment"]["device"]}', _captions(result))


def columns(result: Mapping[str, Any]) -> list[str]:
  """The names of the columns of a result."""
  return list(dict.fromkeys(name for row in result['rows'] for name in row['columns']))


def points(result: Mapping[str, Any], name: str) -> np.ndarray:
  """What a column was measured at: float64 [measurements, 2] of operations a byte and operations a second."""
  found = []
  for row in result['rows']:
    column = row['columns'].get(name, {})
    if 'seconds' in column and 'floor_seconds' in column:
      operations = 2 * row['tokens'] * row['outputs'] * row['inputs']
      moved = column['floor_seconds'] * result['copy_bytes_per_second']
      found.append((operations / moved, operations / column['seconds']))
  return np.array(found, np.float64).reshape(-1, 2)


def _color(index: int) -> int:
  """Another colour than that of the roofs, and another mark than that of the column before: points often coincide."""
  return index % _ROOF + frame.COLORS * ((index + index // _ROOF) % 4)


def _of_bf16(name: str) -> bool:
  return name in kernel_columns.COLUMNS and kernel_columns.COLUMNS[name].bits[1] == 16


def _roof(label: str, color: int, corners: np.ndarray) -> svg.Series:
  return svg.Series(label, color, corners[:, 0], corners[:, 1] / _TERA, drawn='line')


def _captions(result) -> tuple[str, ...]:
  sizes = dict.fromkeys(f'{row["outputs"]} x {row["inputs"]}' for row in result['rows'])
  tokens = dict.fromkeys(row['tokens'] for row in result['rows'])
  roofs = Roofs(result['copy_bytes_per_second'], result['int8_peak'])
  return (f'outputs x inputs: {", ".join(sizes)}; tokens: {", ".join(map(str, tokens))}',
          f'copies at {roofs.bandwidth / _TERA:.2f} TB/s; peak of int8 {roofs.peak / _TERA:,.0f}, of bf16 '
          f'{roofs.peak / 2 / _TERA:,.0f} x 10¹² operations per second; jax {result["environment"]["jax"]}')
