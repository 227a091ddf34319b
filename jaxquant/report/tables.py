"""Precision tables: one row a variant, one column a pair of bit widths, mean and standard deviation over seeds."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxquant import errors
from jaxquant.report import records

# Metrics that have tables, and whether more of them is better.
METRICS = {'perplexity': False, 'accuracy': True, 'normalized_accuracy': True, 'bits_per_byte': False}
FULL_PRECISION = 'W16A16'
MISSING = '–'

_LABEL = re.compile(r'W(?P<weights>.*?)A(?P<activations>[^\sKV]*)(?P<operands>[KV]\S*)? ?(?P<mode>.*)', re.DOTALL)
_MODES = ('', 'static', 'dynamic')
_PLAIN_METHODS = ('none', 'rtn')
_DIGITS = 4


class Cell(NamedTuple):
  """Mean over `count` seeds and their sample standard deviation (n - 1), NaN for a single seed."""

  mean: float
  deviation: float
  count: int


class Row(NamedTuple):
  """One variant quantized by one method.

  `cells` maps a column to its cell. `ratios` maps it to the cell over the same seeds of (value / the same variant and
  seed at W16A16).
  """

  label: str
  cells: dict[str, Cell]
  ratios: dict[str, Cell]


class Table(NamedTuple):
  """A precision table of one dataset and one metric.

  `columns` are labels such as 'W4A4 static': more bits of weights come first, then more bits of activations, and static
  ranges before dynamic ones.
  """

  dataset: str
  metric: str
  columns: tuple[str, ...]
  rows: tuple[Row, ...]

  @property
  def more_is_better(self) -> bool:
    """Whether the larger value is the better one."""
    return METRICS[self.metric]

  @property
  def target(self) -> str | None:
    """The column whose cost the table tells: static codes of the fewest bits for weights and activations both.

    Where there is a choice, operands of attention are floating point.
    """
    both = [column for column in self.columns if _mode(column) == 'static' and max(_bits(column)) < 16]
    measured = [column for column in both if any(column in row.ratios for row in self.rows)]
    alone = [column for column in measured if not _LABEL.fullmatch(column)['operands']]
    return (alone or measured or [None])[-1]

  @property
  def ratio_label(self) -> str:
    """The header of the column of ratios, if there is a `target`."""
    return f'{self.target} / own {FULL_PRECISION}'

  @property
  def seeds(self) -> int:
    """The largest number of seeds behind a cell."""
    return max((cell.count for row in self.rows for cell in row.cells.values()), default=0)


def precision(evaluation: Mapping[str, Any]) -> str:
  """The column of an evaluation, such as 'W16A16' or 'W4A4 static'. Widths left out count as 16 bits."""
  weights, activations = evaluation.get('weights') or 16, evaluation.get('activations') or 16
  mode = evaluation.get('activation_mode') or 'none'
  keys, values = (evaluation.get(name) or 16 for name in ('keys', 'values'))
  quantized = [f'{name}{bits}' for name, bits in (('K', keys), ('V', values)) if records.number(bits) < 16]
  label = f'W{weights}A{activations}' + (f'KV{values}' if len(quantized) > 1 and keys == values else ''.join(quantized))
  # Unquantized activations have no mode, whatever the record says.
  return label if mode == 'none' or records.number(activations) >= 16 else f'{label} {mode}'


def datasets(evaluations: Iterable[Mapping[str, Any]], metric: str = 'perplexity') -> list[str]:
  """The datasets on which `metric` was evaluated, in order of first appearance."""
  return list(dict.fromkeys(_dataset(evaluation) for evaluation in evaluations if metric in evaluation))


def precision_table(
    evaluations: Iterable[Mapping[str, Any]], dataset: str | None = None, metric: str = 'perplexity'
) -> Table:
  """Gathers evaluations of one dataset into a table.

  Args:
    evaluations: the `evaluations` of a `results.json`. Of several with the same variant, method, precision and seed the
      last counts. Methods other than 'none' and 'rtn' get a row of their own, `variant + method`, and so does what
      has a name of its own, its `row`.
    dataset: which dataset; may be None if there is only one.
    metric: one of `METRICS`.

  Returns:
    The table; without rows if no evaluation has the metric.

  Raises:
    errors.UserError: `dataset` is None and there are several.
  """
  evaluations = list(evaluations)
  found = datasets(evaluations, metric)
  if dataset is None and len(found) > 1:
    raise errors.UserError(f'evaluations cover several datasets ({", ".join(found)}): name the one to tabulate.')
  dataset = dataset if dataset is not None else next(iter(found), '')
  # {(variant, row label): {column: {seed: value}}}
  values: dict[tuple[str, str], dict[str, dict[Any, float]]] = {}
  for evaluation in evaluations:
    if metric in evaluation and _dataset(evaluation) == dataset:
      variant, method = records.variant(evaluation), str(evaluation.get('method') or 'none')
      key = variant, str(evaluation.get('row') or (
          variant if method in _PLAIN_METHODS else f'{variant} + {method}'))
      by_seed = values.setdefault(key, {}).setdefault(precision(evaluation), {})
      by_seed[evaluation.get('seed', 0)] = records.number(evaluation[metric])
  order = list(dict.fromkeys(variant for variant, _ in values))
  rows = []
  for variant, label in sorted(values, key=lambda key: order.index(key[0])):
    columns = values[variant, label]
    own = values.get((variant, variant), {}).get(FULL_PRECISION, {})
    rows.append(Row(label, _cells(columns), _cells({
        column: {seed: _ratio(value, own[seed]) for seed, value in by_seed.items() if seed in own}
        for column, by_seed in columns.items()
    })))
  return Table(dataset, metric, tuple(sorted({c for row in rows for c in row.cells}, key=_column_order)), tuple(rows))


def format_number(value: float) -> str:
  """Four significant digits for people: 5.681, 44.71, 3,274, 1.2e+06, n/a, inf."""
  return _format(value, like=value, mantissa=1)


def format_cell(cell: Cell | None, seeds: int = 1, separator: str = ' ') -> str:
  """A cell as text: '44.71 ± 0.32', with 'n=2' added where fewer than `seeds` seeds stand behind it."""
  if cell is None:
    return MISSING
  text = format_number(cell.mean)
  if math.isfinite(cell.deviation):
    text += f'{separator}± {_format(cell.deviation, like=cell.mean, mantissa=0)}'
  return text if cell.count == seeds else f'{text}{separator}n={cell.count}'


def caption(table: Table) -> str:
  """What the numbers of a table are, in a line without a full stop."""
  better = 'higher' if table.more_is_better else 'lower'
  name = table.metric.replace('_', ' ').capitalize()
  text = f'{name} on {table.dataset or "the evaluation data"}, {better} is better'
  if table.seeds > 1:
    text += f'; mean ± sample standard deviation of {table.seeds} seeds'
  return text


def format_text(table: Table, width: int = 100) -> str:
  """The table as aligned plain text.

  Args:
    table: the table.
    width: columns of the terminal. Where rows of 'mean ± deviation' are wider, deviations go on lines of their own.

  Returns:
    Lines joined by newlines: a caption, the header, a rule, and one or more lines a row.
  """
  headers = [[''], *([column] for column in table.columns)]
  if table.target:
    headers.append(re.split(r' (?=/)', table.ratio_label))
  for separator in (' ', '\n'):
    body = [[[row.label]] + [
        format_cell(cell, table.seeds, separator).split('\n') for cell in row_cells(table, row)
    ] for row in table.rows]
    widths = [max(len(line) for line in sum(column, [])) for column in zip(headers, *body)]
    if sum(widths) + 2 * (len(widths) - 1) <= width:
      break
  rule = '  '.join('-' * size for size in widths)
  return '\n'.join([caption(table), *_lines(headers, widths), rule, *sum((_lines(row, widths) for row in body), [])])


def row_cells(table: Table, row: Row) -> list[Cell | None]:
  """The cells of a row by column, the ratio last if the table has one; None where nothing was evaluated."""
  cells = [row.cells.get(column) for column in table.columns]
  return [*cells, row.ratios.get(table.target)] if table.target else cells


def _dataset(evaluation: Mapping[str, Any]) -> str:
  return str(evaluation.get('dataset') or '')


def _ratio(value: float, reference: float) -> float:
  return value / reference if reference else math.nan


def _bits(column: str) -> tuple[float, float]:
  """Bits of weights and of activations."""
  match = _LABEL.fullmatch(column)
  return records.number(match['weights']), records.number(match['activations'])


def _mode(column: str) -> str:
  return _LABEL.fullmatch(column)['mode']


def _column_order(column: str) -> tuple:
  weights, activations = _bits(column)
  return -weights, -activations, _MODES.index(_mode(column)) if _mode(column) in _MODES else len(_MODES), column


def _cells(columns: Mapping[str, Mapping[Any, float]]) -> dict[str, Cell]:
  cells = {}
  for column, by_seed in columns.items():
    if values := list(by_seed.values()):
      with np.errstate(invalid='ignore'):  # An infinite perplexity has no deviation: inf - inf is NaN.
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
      cells[column] = Cell(float(np.mean(values)), deviation, len(values))
  return cells


def _format(value: float, like: float, mantissa: int) -> str:
  """`value` with the decimals that `like` needs for four digits; `mantissa` decimals if it needs an exponent."""
  if math.isnan(value):
    return 'n/a'
  if math.isinf(value):
    return 'inf' if value > 0 else '-inf'
  size = abs(float(f'{like:.{_DIGITS}g}'))
  if size >= 1e5 or 0 < size < 1e-3:
    return f'{value:.{mantissa}e}'
  decimals = _DIGITS - 1 - math.floor(math.log10(size)) if size else 0
  return f'{value:,.{max(decimals, 0)}f}'


def _lines(cells: list[list[str]], widths: list[int]) -> list[str]:
  """One table row as text lines; the first column to the left, the others to the right."""
  lines = []
  for index in range(max(len(cell) for cell in cells)):
    texts = [cell[index] if index < len(cell) else '' for cell in cells]
    aligned = [texts[0].ljust(widths[0]), *(text.rjust(size) for text, size in zip(texts[1:], widths[1:]))]
    lines.append('  '.join(aligned).rstrip())
  return lines
