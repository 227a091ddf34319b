"""The section of what calibration measured and decided: errors before and after, layer by layer, and every choice."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxquant.report import axes
from jaxquant.report import parts
from jaxquant.report import records
from jaxquant.report import svg
from jaxquant.report import tables

_NUMBER = re.compile(r'(?:^|[/.])(\d+)(?=[/.])')
_ERROR = re.compile(r'(relative_)?error(_.*)?|loss_(before|after)')


def decisions(run: records.Run, notes: list[str]) -> str:
  """Charts over the layers for each kind of linear or site, and a table of everything that a method found."""
  by_method: dict[str, dict[str, dict[str, Any]]] = {}
  for path, methods in run.decisions.items():
    for method, entry in methods.items() if isinstance(methods, dict) else ():
      if isinstance(entry, dict):
        by_method.setdefault(method, {})[path] = entry
  # {kind: {'method field': {layer: value}}}
  errors: dict[str, dict[str, dict[int, float]]] = {}
  choices: dict[str, dict[str, dict[int, float]]] = {}
  for method, entries in by_method.items():
    for path, entry in entries.items():
      for field, value in entry.items():
        if not isinstance(value, (list, dict)) and not _is_text(value):
          lines = (errors if _ERROR.fullmatch(field) else choices).setdefault(records.site_kind(path), {})
          lines.setdefault(f'{method} {field}', {})[_layer(path)] = records.number(value)
  body = _errors(errors, notes) + _choices(choices, notes)
  for method, entries in by_method.items():
    body += parts.details(f'Everything of {method}, by path', _table(entries))
  lead = ('What each method found, over the layers: errors before and after, and what it chose. The fields are '
          'explained where the method is (jaxquant/transforms).')
  return parts.section('Decisions', body, lead)


def _errors(by_kind: Mapping[str, Mapping[str, Mapping[int, float]]], notes: list[str]) -> str:
  """One chart for each kind, one line for each error; the same axis for all."""
  fields = list(dict.fromkeys(field for lines in by_kind.values() for field in lines))
  colors = {field: index for index, field in enumerate(fields)}
  charts = []
  for kind in records.limited(by_kind, 'errors', notes):
    lines = [_line(field, colors[field], line) for field, line in by_kind[kind].items()]
    scale = axes.spread(np.concatenate([line.y for line in lines]))
    charts.append(parts.figure(kind, svg.line_chart(
        lines, f'Errors of {kind}', x_label='layer', y_scale=scale, size=svg.TINY)))
  return parts.legend(colors) + parts.grid(charts, 'tiny') if charts else ''


def _choices(by_kind: Mapping[str, Mapping[str, Mapping[int, float]]], notes: list[str]) -> str:
  """One chart for each field of a method, one line for each kind that has it."""
  colors = {kind: index for index, kind in enumerate(by_kind)}
  fields = dict.fromkeys(field for lines in by_kind.values() for field in lines)
  charts = []
  for field in records.limited(fields, 'choices', notes):
    lines = [_line(kind, colors[kind], found[field]) for kind, found in by_kind.items() if field in found]
    charts.append(parts.figure(field.replace('_', ' '), svg.line_chart(
        lines, f'{field} by layer', x_label='layer', size=svg.TINY)))
  return parts.details('Choices', parts.legend(colors) + parts.grid(charts, 'tiny'), opened=True) if charts else ''


def _line(label: str, color: int, by_layer: Mapping[int, float]) -> svg.Series:
  layers = sorted(by_layer)
  return svg.Series(label, color, np.asarray(layers, np.float64), np.asarray([by_layer[layer] for layer in layers]))


def _layer(path: str) -> int:
  found = _NUMBER.search(path)
  return int(found[1]) if found else 0


def _is_text(value: Any) -> bool:
  """Whether a value is a name, not a number, nor the text of one."""
  return isinstance(value, str) and math.isnan(records.number(value)) and value != 'nan'


def _table(found: Mapping[str, Mapping[str, Any]]) -> str:
  """A row for each path, a column for each field."""
  fields = list(dict.fromkeys(field for entry in found.values() for field in entry))

  def cell(value: Any) -> str:
    if isinstance(value, (list, dict)) or _is_text(value):
      return str(value)
    number = records.number(value)
    return tables.MISSING if math.isnan(number) and value is None else f'{number:.4g}'

  rows = [(path, *(cell(entry.get(field)) if field in entry else tables.MISSING for field in fields))
          for path, entry in found.items()]
  return parts.table(('', *(field.replace('_', ' ') for field in fields)), rows)
