"""Writes `report.html`: one self-contained page about a run, made from the run's files alone."""

import html
import json
import math
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxquant.report import decisions
from jaxquant.report import distributions
from jaxquant.report import frame
from jaxquant.report import parts
from jaxquant.report import records
from jaxquant.report import sections
from jaxquant.report import style
from jaxquant.report import tables

_FILE_NAME = 'report.html'
# The settings shown beside the title, by the last part of their name.
_HIGHLIGHTS = re.compile(
    r'(num_)?(layers|heads|steps|tokens)|width|hidden_size|d_model|(vocabulary|vocab|batch)_size|sequence_length|'
    r'context_length|optimizer|learning_rate|weight_decay|dtype|dataset'
)
_HIGHLIGHT_LIMIT = 14
# Groups of settings that none of them is in: options of methods, whether they are used or not.
_UNTOLD = ('ptq', 'rows')


def write_report(workdir: str | os.PathLike) -> pathlib.Path:
  """Writes the page of a run.

  Args:
    workdir: the directory with the run's files (`jaxquant.report` has their schema); the page is written there.

  Returns:
    The path of `report.html`.

  Raises:
    errors.UserError: the directory holds none of the files, or one that is not valid JSON.
  """
  page = render(records.read(workdir))
  path = pathlib.Path(workdir) / _FILE_NAME
  # A reader who reloads the page of a running job never sees half of it.
  partial = path.with_suffix('.html.partial')
  partial.write_text(page, encoding='utf-8')
  partial.replace(path)
  return path


def render(run: records.Run) -> str:
  """The page of a run as HTML."""
  colors = {variant: index for index, variant in enumerate(records.variants(run))}
  notes = [*run.notes, *_divergences(run), *_failures(run)]
  body = ''.join((
      _precision(run),
      sections.training(run, colors),
      sections.outliers(run, colors, notes),
      sections.weights(run, colors, notes),
      sections.ranges(run, colors, notes),
      decisions.decisions(run, notes),
      distributions.distributions(run, notes),
      _record(run),
  ))
  title = str(run.config.get('name') or run.name)
  links = ''.join(
      f'<a href="#{anchor}">{name}</a>' for anchor, name in re.findall(r'<section id="([^"]*)"><h2>([^<]*)</h2>', body)
  )
  warnings = ''.join(f'<li>{html.escape(note)}</li>' for note in dict.fromkeys(notes))
  return (
      '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
      '<meta name="viewport" content="width=device-width, initial-scale=1">'
      '<meta name="color-scheme" content="light dark">'
      f'<title>{html.escape(title)}</title><style>{style.STYLE}{frame.STYLE}</style></head><body><header>'
      f'<p class="kicker">jaxquant report</p><h1>{html.escape(title)}</h1><p>{html.escape(_summary(run))}</p>'
      f'{_highlights(run.config)}{warnings and f"<ul class=notes>{warnings}</ul>"}<nav>{links}</nav></header>\n'
      f'<main>{body}</main></body></html>\n'
  )


def _summary(run: records.Run) -> str:
  """One paragraph: what ran, on what, for how long, and what quantization costs the least and the most."""
  names, finished = records.variants(run), records.entries(run.results, 'runs')
  trained = [record for record in run.metrics if record['kind'] == 'train']
  seeds = {record.get('seed', 0) for record in [*finished, *run.metrics]}
  steps = _largest(record.get('steps', record.get('step')) for record in [*finished, *trained])
  text = []
  if names:
    text.append(f'{len(names)} variant{"s" * (len(names) > 1)} ({", ".join(names)})')
    if len(seeds) > 1:
      text.append(f'with {len(seeds)} seeds each')
    if steps > 0:
      text.append(f'trained for {steps:,.0f} steps')
  tokens = _largest(record.get('tokens') for record in finished)
  if math.isfinite(tokens):
    text.append(f'({_quantity(tokens)} tokens each)')
  environment = run.results.get('environment')
  environment = environment if isinstance(environment, dict) else {}
  if device := environment.get('device'):
    text.append(f'on {environment.get("device_count", 1)} × {device}')
  seconds = records.number(run.results.get('seconds'))
  if math.isfinite(seconds):
    text.append(f'in {_duration(seconds)}')
  return ' '.join([' '.join(text) + '.' * bool(text), *_findings(run)])


def _largest(values: Iterable[Any]) -> float:
  return max((records.number(value) for value in values if math.isfinite(records.number(value))), default=math.nan)


def _findings(run: records.Run) -> Iterator[str]:
  """For each dataset what static codes cost the variants that bear them best and worst."""
  evaluations = records.entries(run.results, 'evaluations')
  for dataset in tables.datasets(evaluations):
    table = tables.precision_table(evaluations, dataset)
    found = [(row.ratios[table.target].mean, row.label) for row in table.rows if table.target in row.ratios]
    found = sorted((cost for cost in found if not math.isnan(cost[0])), key=lambda cost: cost[0])
    costs = [f'{tables.format_number(cost)} ({label})' for cost, label in found]
    if costs:
      span = ' to '.join(dict.fromkeys([costs[0], costs[-1]]))
      yield f'On {dataset or "the evaluation data"}, {table.target} multiplies the perplexity by {span}.'


def _highlights(config: Mapping[str, Any]) -> str:
  """The settings that tell one run from another, as name and value."""
  told = {group: value for group, value in config.items() if group not in _UNTOLD}
  chosen = [(name, value) for name, value in _flat(told) if _HIGHLIGHTS.fullmatch(name.rpartition('.')[2])]
  items = ''.join(
      f'<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>'
      for name, value in chosen[:_HIGHLIGHT_LIMIT]
  )
  return f'<dl>{items}</dl>' if items else ''


def _flat(config: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, str]]:
  for name, value in config.items():
    if isinstance(value, dict):
      yield from _flat(value, f'{prefix}{name}.')
    elif value is not None and not isinstance(value, list):
      yield f'{prefix}{name}', f'{value:,}' if type(value) is int else str(value)


def _divergences(run: records.Run) -> Iterator[str]:
  """One line for each training whose loss stopped being finite."""
  for field in ('loss', 'cross_entropy'):
    found = records.curves(run.metrics, 'train', field)
    for (variant, seed), curve in found.items():
      broken = curve.steps[~np.isfinite(curve.values)]
      if broken.size:
        yield f'The {field.replace("_", " ")} of {variant}, seed {seed}, is not finite from step {broken[0]:,.0f}.'
    if found:
      return


def _failures(run: records.Run) -> Iterator[str]:
  """One line for each evaluation that came to no finite number, of its first metric that did not."""
  for entry in records.entries(run.results, 'evaluations'):
    measured = [metric for metric in tables.METRICS if metric in entry]
    if broken := [metric for metric in measured if not math.isfinite(records.number(entry[metric]))]:
      yield (f'The {broken[0].replace("_", " ")} of {records.variant(entry)}, seed {entry.get("seed", 0)}, at '
             f'{tables.precision(entry)} on {entry.get("dataset") or "the evaluation data"} is not finite.')


def _precision(run: records.Run) -> str:
  """A table of each metric for each dataset, bits per byte folded away."""
  evaluations = records.entries(run.results, 'evaluations')
  *shown, per_byte = (
      ''.join(parts.precision_table(tables.precision_table(evaluations, dataset, metric))
              for dataset in tables.datasets(evaluations, metric))
      for metric in tables.METRICS
  )
  shown = ''.join(shown)
  coded = any(records.number(entry.get(name) or 16) < 16 for entry in evaluations for name in ('keys', 'values'))
  bits = 'W and A are the bits of weights and activations' + ', K and V those of attention\'s keys and values' * coded
  lead = (f'{bits}. Bold is the best of a column; the stronger the shade of a cell, the more quantization costs the '
          'variant.')
  return parts.section('Precision', shown + parts.details('Bits per byte', per_byte, opened=not shown), lead)


def _record(run: records.Run) -> str:
  """What is needed to repeat the run: the runs, the environment and the resolved configuration."""
  rows = [
      (records.variant(entry), str(entry.get('seed', 0)), str(entry.get('checkpoint', tables.MISSING)),
       _quantity(records.number(entry.get('steps'))), _quantity(records.number(entry.get('tokens'))),
       _duration(records.number(entry.get('seconds'))), _quantity(records.number(entry.get('tokens_per_second'))))
      for entry in records.entries(run.results, 'runs')
  ]
  headers = ('variant', 'seed', 'checkpoint', 'steps', 'tokens', 'time', 'tokens/s')
  environment = run.results.get('environment')
  config = html.escape(json.dumps(run.config, indent=2, ensure_ascii=False)) if run.config else ''
  return parts.section('Record', ''.join((
      parts.table(headers, rows, text_columns=3),
      parts.details('Environment', parts.mapping(environment) if isinstance(environment, dict) else ''),
      parts.details('Resolved configuration', config and f'<pre>{config}</pre>'),
  )))


def _quantity(value: float) -> str:
  """A count in short: 950, 12,000, 393 million."""
  for unit, name in ((1e9, ' billion'), (1e6, ' million')):
    if math.isfinite(value) and value >= unit:
      return f'{value / unit:.3g}{name}'
  return f'{value:,.0f}' if math.isfinite(value) else 'n/a'


def _duration(seconds: float) -> str:
  """A duration in its two largest units: 42 s, 3 min 20 s, 1 h 12 min."""
  if not math.isfinite(seconds):
    return 'n/a'
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  named = [(hours, 'h'), (minutes, 'min'), (rest, 's')]
  return ' '.join([f'{count} {unit}' for count, unit in named if count][:2]) or '0 s'
