"""The section of histograms: weights and activations, before and after."""

import html
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxquant.report import parts
from jaxquant.report import records
from jaxquant.report import svg

# Grey and amber first: the colours that fewest pages use for a variant.
_COLORS = (6, 4, 5, 2)
_LEAD = 'Density on a log scale, of the layer with the widest values of each kind. One axis of values for all variants.'


def distributions(run: records.Run, notes: list[str]) -> str:
  """The section, with the first seed of each variant.

  Args:
    run: its `results['histograms']` are drawn.
    notes: receives a line for each histogram that cannot be drawn.
  """
  # {quantity: {site kind: {path: {variant: {stage: bars}}}}}
  found: dict[str, dict[str, dict[str, dict[str, dict[str, svg.Bars]]]]] = {}
  stages: dict[str, int] = {}
  for entry in records.entries(run.results, 'histograms'):
    quantity, stage, path = (str(entry.get(key, '')) for key in ('quantity', 'stage', 'path'))
    edges, counts = _numbers(entry.get('edges')), _numbers(entry.get('counts'))
    if not _drawable(edges, counts):
      notes.append(f'The {stage} histogram of {path} ({records.variant(entry)}) is left out: '
                   'n counts need n + 1 finite edges in ascending order.')
      continue
    bars = svg.Bars(stage, stages.setdefault(stage, _COLORS[len(stages) % len(_COLORS)]), edges, counts)
    variants = found.setdefault(quantity, {}).setdefault(records.site_kind(path), {}).setdefault(path, {})
    variants.setdefault(records.variant(entry), {}).setdefault(stage, bars)
  body = ''
  for quantity, kinds in found.items():
    rows = ''
    for kind in records.limited(kinds, f'{quantity} histograms', notes):
      paths = kinds[kind]
      path = max(paths, key=lambda path: max(_extent(layers) for layers in paths[path].values()))
      extent = max(_extent(layers) for layers in paths[path].values())
      figures = [
          parts.figure(variant, svg.histogram(
              list(layers.values()), f'{quantity} {path}, {variant}', x_limits=(-extent, extent), size=svg.TINY))
          for variant, layers in paths[path].items()
      ]
      rows += f'<h4>{html.escape(path)}</h4>{parts.grid(figures, "tiny")}'
    body += parts.details(f'{quantity.capitalize()}s', parts.legend(stages) + rows, opened=not body)
  return parts.section('Distributions', body, _LEAD)


def _numbers(values: Any) -> np.ndarray:
  return np.asarray([records.number(value) for value in values] if isinstance(values, list) else [], np.float64)


def _drawable(edges: np.ndarray, counts: np.ndarray) -> bool:
  if not counts.size or edges.size != counts.size + 1:
    return False
  return bool(np.isfinite(edges).all() and np.isfinite(counts).all() and (np.diff(edges) > 0).all())


def _extent(layers: Mapping[str, svg.Bars]) -> float:
  return max(float(np.abs(bars.edges[[0, -1]]).max()) for bars in layers.values())
