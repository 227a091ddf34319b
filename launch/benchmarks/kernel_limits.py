"""What products of few tokens wait for: times of kernels that leave a part of their work out, and compute nothing."""

from collections.abc import Iterator, Sequence
import contextlib
import functools
import itertools
from typing import Any

import jax

from kernels.mosaic import products
from kernels.mosaic import sums
from launch.benchmarks import kernel_columns
from launch.benchmarks import kernel_programs
from launch.benchmarks import kernel_timing

# By what is left out: the operands that are copied (`products.Product.MOVED`), and whether they are multiplied.
_WEIGHTS, _ACTIVATIONS = (1,), (0,)
PARTS = {'nothing': ((*_WEIGHTS, *_ACTIVATIONS), True), 'activations': (_WEIGHTS, True),
         'products': ((*_WEIGHTS, *_ACTIVATIONS), False), 'weights': (_ACTIVATIONS, True),
         'weights, products': (_ACTIVATIONS, False)}


def measure(
    shapes: Sequence[kernel_columns.Problem], names: Sequence[str], repetitions: int, bandwidth: float,
) -> list[dict[str, Any]]:  # pyformat: disable
  """Measures every problem without each part, and prints a table in microseconds.

  Args:
    shapes: the problems.
    names: columns of `kernel_columns.TUNED`.
    repetitions: of which the median counts.
    bandwidth: bytes a second of a copy.

  Returns:
    A row for each problem and column: by part the seconds or the error, and the seconds of a copy of the bytes.
  """
  cases = list(itertools.product(shapes, names))
  programs = dict(kernel_programs.compiled(
      ((problem, name, part), functools.partial(_lowered, kernel_columns.COLUMNS[name], problem, part))
      for (problem, name), part in itertools.product(cases, PARTS)))
  print(' '.join(['outputs', ' inputs', 'tokens', f'{"":>14}', *(f'{part:>18}' for part in PARTS), '       bytes']))
  rows = []
  for problem, name in cases:
    column, found = kernel_columns.COLUMNS[name], {}
    for part in PARTS:
      try:
        calls = column.calls(problem, programs[problem, name, part]())
        found[part] = {'seconds': kernel_timing.seconds(calls, repetitions)}
      except (NotImplementedError, ValueError, RuntimeError) as error:
        found[part] = kernel_programs.failure(error)
    floor = column.bytes(problem) / bandwidth
    rows.append({**problem._asdict(), 'column': name, 'without': found, 'floor_seconds': floor})
    cells = [f'{problem.outputs:7}', f'{problem.inputs:7}', f'{problem.tokens:6}', f'{name:>14}']
    times = [f'{kernel_timing.cell(result.get("seconds")):>18}' for result in found.values()]
    print(' '.join([*cells, *times, kernel_timing.cell(floor)]), flush=True)
  return rows


def _lowered(column: kernel_columns.Column, problem: kernel_columns.Problem, part: str) -> Any:
  with without(part):
    return column.lowered(problem)


@contextlib.contextmanager
def without(part: str) -> Iterator[None]:
  """Within it, kernels of few tokens are traced without a part of `PARTS`; nothing that was traced before is used."""
  moved, multiplied = PARTS[part]
  replaced = [(products.Product, 'MOVED', moved)] + ([] if multiplied else [(sums, 'over', _nothing)])
  before = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
  _set(replaced)
  try:
    yield
  finally:
    _set(before)


def _set(values) -> None:
  for owner, name, value in values:
    setattr(owner, name, value)
  jax.clear_caches()


def _nothing(steps, tile, turns=None):
  """Sums of nothing, when the operands of all steps were there (see `sums.over`)."""
  del turns
  steps.each(lambda slot, carry: carry, None)
  return tile.zeros(tile.product.dtype)
