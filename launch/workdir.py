"""The files a run leaves in its workdir, and what another launcher reads from them.

  config.json      the resolved configuration
  metrics.jsonl    one record a line (jaxquant.report)
  results.json     evaluations, histograms, runs, environment
  report.html      the report
  tokenizer.json   the tokenizer
  tokens/          tokenized texts
  checkpoints/     one directory for each variant and seed
"""

import fcntl
import json
import os
import pathlib
import platform
from typing import Any

import jax

from jaxquant import errors
from jaxquant.models import config as model_config

VARIANTS = ('baseline', 'qat', 'kurtosis', 'both')


class Workdir:
  """A workdir opened for writing; locked until the process ends."""

  def __init__(self, path: str | None, config: dict[str, Any]):
    """Opens or creates the directory and writes `config.json`.

    Args:
      path: the directory.
      config: the resolved configuration, JSON values.

    Raises:
      UserError: no path, not writable, used by another launch, or holding a run of another configuration.
    """
    if not path:
      raise errors.UserError('--workdir=DIR is needed: where results go')
    self.path = pathlib.Path(path)
    self.writes = jax.process_index() == 0
    config = json.loads(json.dumps(config))
    if not self.writes:
      return
    try:
      self.path.mkdir(parents=True, exist_ok=True)
      self._lock = open(self.path / '.lock', 'a')  # pylint: disable=consider-using-with
    except OSError as error:
      raise errors.UserError(f'cannot write to the workdir {path}: {error.strerror}') from None
    try:
      fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      raise errors.UserError(f'the workdir {path} is in use by another launch') from None
    previous = self.path / 'config.json'
    if previous.exists() and (difference := _difference(_load(previous), config)):
      raise errors.UserError(f'the workdir {path} holds a run of another configuration: {difference}')
    write_json(previous, config)

  def log(self, record: dict[str, Any]) -> None:
    """Appends a record to `metrics.jsonl`."""
    if self.writes:
      with open(self.path / 'metrics.jsonl', 'a', encoding='utf-8') as file:
        file.write(json.dumps(record) + '\n')

  def drop_records_after(self, step: int, variant: str, seed: int) -> None:
    """Removes the records of later steps, which a resumed run will write again, and an unfinished last line."""
    path = self.path / 'metrics.jsonl'
    if not self.writes or not path.exists():
      return
    kept = []
    for line in path.read_text(encoding='utf-8').splitlines():
      try:
        record = json.loads(line)
      except json.JSONDecodeError:
        continue
      if record.get('variant') != variant or record.get('seed') != seed or record['step'] <= step:
        kept.append(line + '\n')
    _replace(path, ''.join(kept))

  def write_results(self, results: dict[str, Any]) -> None:
    """Replaces `results.json`."""
    if self.writes:
      write_json(self.path / 'results.json', results)

  def checkpoints(self, variant: str, seed: int) -> str:
    """Directory of the checkpoints of one run."""
    return checkpoint_directory(self.path, variant, seed)


def checkpoint_directory(path, variant: str, seed: int) -> str:
  """Directory of the checkpoints of a variant and seed in the workdir `path`."""
  return str(pathlib.Path(path) / 'checkpoints' / f'{variant}-seed{seed}')


class Model:
  """A trained model in a workdir, opened for reading."""

  def __init__(self, path: str | None, variant: str | None = None, seed: int | None = None):
    """Finds the model.

    Args:
      path: a workdir of `launch.train` or `launch.quantize`.
      variant: which of its variants; the last of `VARIANTS` that it holds by default.
      seed: which of its seeds; the smallest by default.

    Raises:
      UserError: the directory is missing, is no workdir, or lacks that variant or seed.
    """
    if not path:
      raise errors.UserError('--model=DIR is needed: the workdir of a trained model')
    self.path = pathlib.Path(path)
    if not (self.path / 'config.json').is_file():
      raise errors.UserError(f'{path} is not a workdir: it has no config.json')
    self.config = _load(self.path / 'config.json')
    folder = self.path / 'checkpoints'
    found = [p.name.rpartition('-seed') for p in folder.iterdir() if p.is_dir()] if folder.is_dir() else []
    runs = sorted((name, int(number)) for name, _, number in found if number.isdigit())
    rank = lambda run: (VARIANTS.index(run[0]) if run[0] in VARIANTS else len(VARIANTS), -run[1])
    matches = [r for r in runs if variant in (None, r[0]) and seed in (None, r[1])]
    if not matches:
      have = ', '.join(f'{name} seed {number}' for name, number in runs) or 'no checkpoints'
      raise errors.UserError(f'{path} has no variant {variant or "any"} with seed {"any" if seed is None else seed}: {have}')
    self.variant, self.seed = max(matches, key=rank)
    self.decoder = model_config.DecoderConfig.from_dict(self.config['model'])
    self.length = self.config['training']['length']

  @property
  def checkpoints(self) -> str:
    """Directory of its checkpoints."""
    return checkpoint_directory(self.path, self.variant, self.seed)


def environment() -> dict[str, Any]:
  """Devices and versions, for `results.json`."""
  device = jax.devices()[0]
  return {
      'device': device.device_kind if device.platform != 'cpu' else platform.processor() or platform.machine(),
      'platform': device.platform, 'device_count': jax.device_count(), 'processes': jax.process_count(),
      'python': platform.python_version(), 'jax': jax.__version__,
  }


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes JSON so that a reader sees the old file or the new one."""
  _replace(path, json.dumps(value, indent=1) + '\n')


def _replace(path: pathlib.Path, text: str) -> None:
  partial = path.with_name(path.name + '.partial')
  partial.write_text(text, encoding='utf-8')
  os.replace(partial, path)


def _load(path: pathlib.Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise errors.UserError(f'{path} cannot be read: {error}') from None


def _difference(old: Any, new: Any, path: str = '') -> str:
  """The first key at which two configurations differ, with both values; empty if they are equal."""
  if isinstance(old, dict) and isinstance(new, dict):
    for key in sorted({*old, *new}):
      if text := _difference(old.get(key), new.get(key), f'{path}.{key}' if path else key):
        return text
    return ''
  return '' if old == new else f'{path} was {old!r} and is now {new!r}'
