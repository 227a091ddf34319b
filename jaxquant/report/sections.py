"""The charts of the page, section by section. A section without records is an empty text.

A variant has one colour on the whole page. Where there are many layers, a line is their mean and its band reaches from
the smallest to the largest: the worst layer is the edge of the band.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxquant.report import axes
from jaxquant.report import parts
from jaxquant.report import records
from jaxquant.report import svg
from jaxquant.report import tables

_SMOOTHING_SHARE = 40  # The moving mean spans one part in 40 of a curve.
_WARMUP_SHARE = 0.05  # Losses of the first steps may leave the chart, or nothing could be read from the rest.
_SIZES = {'large': svg.LARGE, 'tiny': svg.TINY}
_BAND = 'Lines: mean over layers and seeds. Bands: smallest to largest.'

Colors = Mapping[str, int]
Records = Sequence[Mapping[str, Any]]


def training(run: records.Run, colors: Colors) -> str:
  """Loss curves, and beneath them throughput, gradient norm, activation kurtosis, learning rate and memory."""
  chosen = [record for record in run.metrics if record['kind'] in ('train', 'validation')]
  losses = _losses(run, colors)
  progress = [
      _progress(run, colors, 'tokens_per_second', 'Throughput', 'tokens per second, moving mean', from_zero=True),
      _progress(run, colors, 'gradient_norm', 'Gradient norm', 'moving mean'),
      _progress(run, colors, 'kurtosis', 'Activation kurtosis', 'mean over sites, moving mean'),
      _progress(run, colors, 'learning_rate', 'Learning rate', '', from_zero=True, smooth=False),
      _progress(run, colors, 'memory_bytes', 'Device memory', 'GiB', from_zero=True, smooth=False, unit=2.0**30),
  ]
  # The charts of losses have legends of their own, which serve the small ones below too.
  legend = parts.legend(_present(chosen, colors)) if any(progress) and not losses else ''
  lead = 'One line per seed.' if len({record.get('seed', 0) for record in chosen}) > 1 else ''
  body = legend + parts.grid(losses, 'large') + parts.grid([figure for figure in progress if figure])
  return parts.section('Training', body, lead)


def outliers(run: records.Run, colors: Colors, notes: list[str]) -> str:
  """Growth of outlier channels at the sites that read the residual stream and at the others, and the worst of each."""
  chosen = [record for record in run.metrics if record['kind'] == 'site']
  last: dict[str, float] = {}
  for record in chosen:
    last[records.variant(record)] = max(record['step'], last.get(records.variant(record), -np.inf))
  final = [record for record in chosen if record['step'] == last[records.variant(record)]]
  final = records.entries(run.results, 'outlier_summary') or final
  body = ''
  for reads, title, layout in (
      (True, 'Sites that read the residual stream', 'large'), (False, 'Other sites, on the same axes', 'tiny')):
    group, worst = (
        [record for record in part if bool(record.get('reads_residual')) == reads] for part in (chosen, final))
    peaks = _by_kind(chosen, 'site', 'peak_ratio', 'peak ratio', colors, notes, 'log', _SIZES[layout])
    kurtosis = _by_kind(chosen, 'site', 'kurtosis', 'kurtosis', colors, notes, 'log', _SIZES[layout])
    kinds = dict.fromkeys(records.site_kind(str(record.get('site', ''))) for record in group)
    pairs = [found[kind] for kind in kinds for found in (peaks, kurtosis) if kind in found]
    part = parts.legend(_present(group, colors)) + parts.grid(pairs, layout) if pairs else ''
    part += _worst_sites(worst)
    body += f'<h3>{title}</h3>{part}' if part else ''
  lead = 'Peak ratio: the largest mean |x| of a channel over that of the median channel. '
  return parts.section('Outlier channels', body, lead + _BAND)


def weights(run: records.Run, colors: Colors, notes: list[str]) -> str:
  """Kurtosis and largest magnitude of the weights over time."""
  chosen = [record for record in run.metrics if record['kind'] == 'weight']
  body = ''
  for field, title in (('kurtosis', 'Kurtosis'), ('absolute_maximum', 'Largest magnitude')):
    if charts := _by_kind(chosen, 'path', field, '', colors, notes, 'linear', svg.TINY):
      legend = parts.legend(_present(chosen, colors))
      body += parts.details(title, legend + parts.grid(list(charts.values()), 'tiny'), opened=not body)
  return parts.section('Weights over time', body, _BAND)


def ranges(run: records.Run, colors: Colors, notes: list[str]) -> str:
  """The learned clip ranges over time: the low and the high end of each kind of site."""
  chosen = [record for record in run.metrics if record['kind'] == 'range']
  ends = [records.bands(chosen, 'path', field) for field in ('low', 'high')]
  charts = []
  for kind in records.limited([*ends[0], *(kind for kind in ends[1] if kind not in ends[0])], 'clip ranges', notes):
    lines = [line for bands in ends for line in _band_lines(bands.get(kind, {}), colors)]
    charts.append(parts.figure(kind, svg.line_chart(lines, f'Clip range of {kind}', size=svg.TINY)))
  body = parts.legend(_present(chosen, colors)) + parts.grid(charts, 'tiny') if charts else ''
  return parts.section('Clip ranges over time', body, f'Low and high ends. {_BAND}')


def _losses(run: records.Run, colors: Colors) -> list[str]:
  """Training and validation cross entropy; the loss stands in for a training cross entropy that was not recorded."""
  figures = []
  cross_entropy, loss = (records.curves(run.metrics, 'train', field) for field in ('cross_entropy', 'loss'))
  for title, detail, found in (
      ('Training cross entropy', 'nats per token, moving mean', _smoothed(cross_entropy)),
      ('Training loss', 'moving mean', {} if cross_entropy else _smoothed(loss)),
      ('Validation cross entropy', 'nats per token', records.curves(run.metrics, 'validation', 'cross_entropy')),
  ):
    if found:
      chart = svg.line_chart(
          _lines(found, colors), title, y_limits=(None, _settled(found)), size=svg.LARGE, legend=True)
      figures.append(parts.figure(title, chart, detail))
  return figures


def _progress(
    run: records.Run, colors: Colors, field: str, title: str, detail: str, from_zero: bool = False,
    smooth: bool = True, unit: float = 1.0,
) -> str:
  """A small chart of a training field, divided by `unit`; empty if it was never finite."""
  found = records.curves(run.metrics, 'train', field)
  found = _smoothed(found) if smooth else found
  found = {key: curve._replace(values=curve.values / unit) for key, curve in found.items()}
  values = np.concatenate([curve.values for curve in found.values()] or [np.zeros(0)])
  if not np.isfinite(values).any():
    return ''
  scale, limits = ('linear', (0.0, None)) if from_zero else (axes.spread(values), (None, None))
  return parts.figure(title, svg.line_chart(_lines(found, colors), title, y_scale=scale, y_limits=limits), detail)


def _worst_sites(chosen: Records) -> str:
  """A table of the site with the largest peak ratio of each variant."""
  def badness(record: Mapping[str, Any]) -> float:
    return float(np.nan_to_num(records.number(record.get('peak_ratio')), nan=np.inf))

  worst: dict[str, Mapping[str, Any]] = {}
  for record in sorted(chosen, key=badness, reverse=True):
    worst.setdefault(records.variant(record), record)
  fields = ('peak_ratio', 'kurtosis', 'absolute_maximum')
  rows = [
      (variant, str(record.get('site', '')), *(
          tables.format_number(records.number(record[field])) if field in record else tables.MISSING
          for field in fields),
       str(record.get('outlier_channels', tables.MISSING)))
      for variant, record in worst.items()
  ]
  headers = ('variant', 'worst site at the end', 'peak ratio', 'kurtosis', 'largest |x|', 'outlier channels')
  return parts.table(headers, rows, text_columns=2)


def _by_kind(
    chosen: Records, name: str, field: str, detail: str, colors: Colors, notes: list[str], x_scale: str,
    size: tuple[int, int],
) -> dict[str, str]:
  """One chart per kind of site, all with the same y axis; the kinds with the largest values if there are too many."""
  found = records.bands(chosen, name, field)
  largest = {
      kind: max(band.high[np.isfinite(band.high)].max(initial=-np.inf) for band in bands.values())
      for kind, bands in found.items()
  }
  title = f'{field} by {name}'.replace('_', ' ')
  kept = records.limited(sorted(largest, key=largest.get, reverse=True), title, notes)
  values = [part for kind in kept for band in found[kind].values() for part in (band.low, band.high)]
  values = np.concatenate(values or [np.zeros(0)])
  scale = axes.spread(values)
  values = values[np.isfinite(values) & ((values > 0) | (scale == 'linear'))]
  if not values.size:
    return {}
  margin = 1.1 if scale == 'log' else 1.0
  limits = float(values.min()) / margin, float(values.max()) * margin
  charts = {}
  for kind in [kind for kind in found if kind in kept]:
    chart = svg.line_chart(
        _band_lines(found[kind], colors), f'{title}: {kind}', x_scale=x_scale, y_scale=scale, y_limits=limits,
        size=size)
    charts[kind] = parts.figure(kind, chart, detail)
  return charts


def _present(chosen: Records, colors: Colors) -> dict[str, int]:
  found = {records.variant(record) for record in chosen}
  return {name: color for name, color in colors.items() if name in found}


def _lines(found: Mapping[tuple[str, Any], records.Curve], colors: Colors) -> list[svg.Series]:
  return [svg.Series(variant, colors[variant], curve.steps, curve.values) for (variant, _), curve in found.items()]


def _band_lines(found: Mapping[str, records.Band], colors: Colors) -> list[svg.Series]:
  return [svg.Series(variant, colors[variant], *band) for variant, band in found.items()]


def _smoothed(found: Mapping[Any, records.Curve]) -> dict[Any, records.Curve]:
  """Centred moving means over the finite values; values that are not finite stay as they are."""
  smooth = {}
  for key, curve in found.items():
    window = curve.values.size // _SMOOTHING_SHARE | 1
    known = np.isfinite(curve.values)
    total, count = (
        np.convolve(values, np.ones(window))[window // 2:window // 2 + curve.values.size]
        for values in (np.where(known, curve.values, 0.0), known.astype(np.float64))
    )
    smooth[key] = curve._replace(values=np.where(known, total / np.maximum(count, 1.0), curve.values))
  return smooth


def _settled(found: Mapping[Any, records.Curve]) -> float | None:
  """The upper end of a loss axis: a little above the largest value after the warm-up. None without finite values."""
  finite = [np.isfinite(curve.values) for curve in found.values()]
  late = [curve.steps >= _WARMUP_SHARE * curve.steps[-1] for curve in found.values()]
  every = np.concatenate([curve.values[known] for curve, known in zip(found.values(), finite)])
  settled = np.concatenate([curve.values[known & after] for curve, known, after in zip(found.values(), finite, late)])
  return float(settled.max() + 0.04 * (settled.max() - every.min())) if settled.size else None
