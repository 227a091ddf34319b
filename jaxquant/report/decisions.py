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
  """Charts over the layers for each kind of linear or site, and a table of everything."""
  by_kind: dict[str, dict[str, dict[int, float]]] = {}
  for path, entry in run.decisions.items():
    fields = by_kind.setdefault(records.site_kind(path), {})
    for field, value in entry.items() if isinstance(entry, dict) else ():
      if not isinstance(value, (list, dict)):
        fields.setdefault(field, {})[_layer(path)] = records.number(value)
  errors = {kind: {field: line for field, line in fields.items() if _ERROR.fullmatch(field)}
            for kind, fields in by_kind.items()}
  body = _errors({kind: fields for kind, fields in errors.items() if fields}, notes)
  body += _choices(by_kind, notes)
  body += parts.details('Everything, by path', _table(run.decisions))
  lead = ('What each method found, over the layers: errors before and after, and what it chose. The fields are explained '
          'where the method is (jaxquant/transforms).')
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
  """One chart for each other field, one line for each kind that has it."""
  colors = {kind: index for index, kind in enumerate(by_kind)}
  fields = dict.fromkeys(field for lines in by_kind.values() for field in lines if not _ERROR.fullmatch(field))
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


def _table(found: Mapping[str, Any]) -> str:
  """A row for each path, a column for each field."""
  fields = list(dict.fromkeys(field for entry in found.values() if isinstance(entry, dict) for field in entry))

  def cell(value: Any) -> str:
    if isinstance(value, (list, dict)):
      return str(value)
    number = records.number(value)
    return tables.MISSING if math.isnan(number) and value is None else f'{number:.4g}'

  rows = [(path, *(cell(entry.get(field)) if field in entry else tables.MISSING for field in fields))
          for path, entry in found.items() if isinstance(entry, dict)]
  return parts.table(('', *(field.replace('_', ' ') for field in fields)), rows)
