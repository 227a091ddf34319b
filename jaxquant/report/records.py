"""Reads the files of a run and groups its records into curves and bands.

Reading is forgiving where a run may have been cut short, and says so: what was left out becomes a note on the page. The
schema of the files stands in the docstring of `jaxquant.report`.
"""

import json
import math
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxquant import errors

_KIND_LIMIT = 12
_FILES = ('metrics.jsonl', 'results.json', 'config.json')
# A path component that counts layers: `layers/3/mlp` and `encoder.3.mlp`, but not the 4 of `int4`.
_LAYER_NUMBER = re.compile(r'(?<![^/.])\d+(?![^/.])')


class Run(NamedTuple):
  """The records of one workdir: its name, its files as Python objects, and what reading them left out."""

  name: str
  config: dict[str, Any]
  results: dict[str, Any]
  metrics: list[dict[str, Any]]
  notes: list[str]
  decisions: dict[str, Any] = {}


class Curve(NamedTuple):
  """Values over steps, both float64 of shape [points], in ascending order of steps."""

  steps: np.ndarray
  values: np.ndarray


class Band(NamedTuple):
  """Mean, smallest and largest value at each step over several members, float64 of shape [points]."""

  steps: np.ndarray
  mean: np.ndarray
  low: np.ndarray
  high: np.ndarray


def number(value: Any) -> float:
  """`value` as a float; NaN for None and for anything that is not a number. Accepts the texts 'nan' and 'inf'."""
  try:
    return float(value)
  except (TypeError, ValueError, OverflowError):
    return math.nan


def site_kind(path: str) -> str:
  """The path with its layer numbers replaced by `*`: what the same site of all layers has in common."""
  return _LAYER_NUMBER.sub('*', path)


def limited(kinds: Iterable[str], what: str, notes: list[str]) -> list[str]:
  """The first 12 kinds, of sites or of choices, as many as a page can hold; `notes` tells what is left out."""
  kinds = list(kinds)
  if len(kinds) > _KIND_LIMIT:
    left = kinds[_KIND_LIMIT:]
    notes.append(f'Of {len(kinds)} kinds ({what}) the page shows {_KIND_LIMIT}, without {", ".join(left[:3])}'
                 + (' ...' if len(left) > 3 else '.'))
  return kinds[:_KIND_LIMIT]


def read(workdir: str | os.PathLike) -> Run:
  """Reads a run's files.

  Args:
    workdir: the directory that holds `metrics.jsonl`, `results.json` and `config.json`, or some of them.

  Returns:
    The run. Records of one kind, variant, seed, step and path are reduced to the last one written.

  Raises:
    errors.UserError: the directory holds none of the files, or one that is not valid JSON. The last line of
      `metrics.jsonl`, which a killed run may have left unfinished, is only noted.
  """
  folder = pathlib.Path(workdir)
  if not any((folder / name).is_file() for name in _FILES):
    raise errors.UserError(f'{folder}: no report without {", ".join(_FILES[:2])} or {_FILES[2]}; is it a workdir?')
  notes: list[str] = []
  return Run(
      name=folder.resolve().name,
      config=_read_object(folder / 'config.json'),
      results=_read_object(folder / 'results.json'),
      metrics=_read_metrics(folder / 'metrics.jsonl', notes),
      notes=notes,
      decisions=_read_object(folder / 'decisions.json'),
  )


def entries(results: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
  """The objects of the list `results[key]`; empty where the key is missing."""
  values = results.get(key)
  return [entry for entry in values if isinstance(entry, dict)] if isinstance(values, list) else []


def variant(record: Mapping[str, Any]) -> str:
  """The record's variant as text; a run with a single variant may leave it out and is called 'run'."""
  return str(record.get('variant', 'run'))


def variants(run: Run) -> list[str]:
  """All variants of a run in order of first appearance: evaluations first, then the other records."""
  listed = [entry for key in ('evaluations', 'runs', 'histograms') for entry in entries(run.results, key)]
  return list(dict.fromkeys(variant(record) for record in [*listed, *run.metrics]))


def curves(metrics: Iterable[Mapping[str, Any]], kind: str, field: str) -> dict[tuple[str, Any], Curve]:
  """The curve of `field` for each (variant, seed) among the records of `kind` that have the field."""
  points: dict[tuple[str, Any], dict[float, float]] = {}
  for record in metrics:
    if record['kind'] == kind and field in record:
      points.setdefault((variant(record), record.get('seed', 0)), {})[record['step']] = number(record[field])
  return {key: _curve(values) for key, values in points.items()}


def bands(records: Iterable[Mapping[str, Any]], name: str, field: str) -> dict[str, dict[str, Band]]:
  """Bands of `field` over layers and seeds.

  Args:
    records: records of one kind.
    name: the key that holds a record's path, `site` or `path`.
    field: the key of the value.

  Returns:
    `{site kind: {variant: band}}`, in order of first appearance. A step at which any member is not finite has no finite
    mean: a diverged layer is not averaged away.
  """
  members: dict[str, dict[str, dict[float, list[float]]]] = {}
  for record in records:
    if field in record:
      by_step = members.setdefault(site_kind(str(record.get(name, ''))), {}).setdefault(variant(record), {})
      by_step.setdefault(record['step'], []).append(number(record[field]))
  return {kind: {key: _band(by_step) for key, by_step in found.items()} for kind, found in members.items()}


def _curve(points: Mapping[float, float]) -> Curve:
  steps = sorted(points)
  return Curve(np.asarray(steps, np.float64), np.asarray([points[step] for step in steps], np.float64))


def _band(by_step: Mapping[float, list[float]]) -> Band:
  steps = sorted(by_step)
  reduced = [_curve({step: reduce(by_step[step]) for step in steps}).values for reduce in (np.mean, np.min, np.max)]
  return Band(np.asarray(steps, np.float64), *reduced)


def _read_object(path: pathlib.Path) -> dict[str, Any]:
  if not path.is_file():
    return {}
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise errors.UserError(f'{path}: not valid JSON ({error}).') from error
  if not isinstance(value, dict):
    raise errors.UserError(f'{path}: holds a {type(value).__name__}, but must hold one JSON object.')
  return value


def _read_metrics(path: pathlib.Path, notes: list[str]) -> list[dict[str, Any]]:
  if not path.is_file():
    return []
  lines = path.read_text(encoding='utf-8', errors='replace').splitlines()
  latest: dict[tuple[Any, ...], dict[str, Any]] = {}
  incomplete = 0
  for index, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    try:
      record = json.loads(line)
    except ValueError as error:
      if index == len(lines):
        notes.append(f'The last line of {path.name} ({index}) is unfinished and left out.')
        continue
      raise errors.UserError(f'{path}, line {index}: not valid JSON ({error}).') from error
    if not isinstance(record, dict) or 'kind' not in record or not math.isfinite(number(record.get('step'))):
      incomplete += 1
      continue
    record['step'] = number(record['step'])
    name = record.get('site', record.get('path'))
    latest[record['kind'], variant(record), record.get('seed', 0), record['step'], name] = record
  if incomplete:
    notes.append(f'{incomplete} lines of {path.name} have no kind or no step and are left out.')
  return list(latest.values())
