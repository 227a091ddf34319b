"""The files a run leaves in its workdir. Process 0 alone writes them.

  config.json      the resolved configuration
  metrics.jsonl    one record a line (jaxquant.report), of a training or a quantization
  results.json     evaluations, histograms, runs, environment
  decisions.json   what calibration measured and decided, by path of the linear or site and by method
  report.html      the report
  tokenizer.json   the tokenizer
  tokens/          tokenized texts
  checkpoints/     one directory for each variant and seed
  blocks/          finished blocks of a quantization under way
  jaxquant_manifest.json    what every parameter of a quantized model is, where it comes from, checksums
  origin/          configuration and tokenizer of the directory that an imported model came from
"""

import contextlib
import fcntl
import json
import os
import pathlib
import platform
from typing import Any

import jax

from jaxquant import errors

ORIGIN, DECISIONS = 'origin', 'decisions.json'
# The files and folders that are the model itself.
MODEL = ('checkpoints', ORIGIN, 'tokenizer.json')
VARIANTS = ('baseline', 'qat', 'kurtosis', 'both')
QUANTIZED = ('qat', 'both')  # those of them that are trained with quantizers
BEST_METRIC = 'cross_entropy'  # of validation, by which the best checkpoints are kept

# What a run has to show for itself; before the first of them exists, a mended configuration may take its place.
_WORK = ('metrics.jsonl', 'checkpoints', 'results.json', 'blocks')
_FOLDERS = ('checkpoints', 'blocks', 'tokens')


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
    if self.writes:
      self._open(json.loads(json.dumps(config)))

  def _open(self, config):
    lock, previous = self.path / '.lock', self.path / 'config.json'
    if previous.exists() and not lock.exists() and _difference(read_json(previous), config):
      raise errors.UserError(f'{self.path} is no workdir: no launch has written its config.json')
    with _naming_failures(self.path):
      self.path.mkdir(parents=True, exist_ok=True)
      self._lock = open(lock, 'a')  # pylint: disable=consider-using-with
    try:
      fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      raise errors.UserError(f'the workdir {self.path} is in use by another launch') from None
    for folder in map(self.path.joinpath, _FOLDERS):
      if folder.exists() and not folder.is_dir():
        raise errors.UserError(f'{folder} is no directory: the workdir keeps its own there')
    if previous.exists() and (difference := _difference(read_json(previous), config)):
      if any((self.path / name).exists() for name in _WORK):
        raise errors.UserError(f'the workdir {self.path} holds a run of another configuration: {difference}')
      (self.path / 'tokenizer.json').unlink(missing_ok=True)
    write_json(previous, config)

  def log(self, record: dict[str, Any]) -> None:
    """Appends a record to `metrics.jsonl`, null for what is no finite number."""
    if self.writes:
      path = self.path / 'metrics.jsonl'
      with _naming_failures(path), open(path, 'a', encoding='utf-8') as file:
        file.write(json.dumps(_finite(record), allow_nan=False) + '\n')

  def drop_records_after(self, step: int, variant: str, seed: int) -> None:
    """Removes the records that a run will write again, and lines that are none, such as an unfinished last one.

    Args:
      step: steps that a checkpoint holds; the records of later ones go. A run without a checkpoint, whose step is 0,
        starts with the measurements before any training, so that all of its records go.
      variant, seed: the run; others keep their records.
    """
    path = self.path / 'metrics.jsonl'
    if not self.writes or not path.exists():
      return
    kept = []
    for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
      try:
        record = json.loads(line)
      except ValueError:
        continue
      if isinstance(record, dict):
        mine = record.get('variant') == variant and record.get('seed') == seed
        if not mine or record.get('step', 0) <= (step or -1):
          kept.append(line + '\n')
    write_text(path, ''.join(kept))

  def read_results(self) -> dict[str, Any]:
    """What `results.json` holds, in the process that writes it; empty if there is none. See `read_results`."""
    return read_results(self.path) if self.writes and (self.path / 'results.json').exists() else {}

  def write_results(self, results: dict[str, Any]) -> None:
    """Replaces `results.json`."""
    if self.writes:
      write_json(self.path / 'results.json', results)

  def write_decisions(self, decisions: dict[str, Any]) -> None:
    """Replaces `decisions.json`."""
    if self.writes:
      write_json(self.path / DECISIONS, decisions)

  @property
  def has_checkpoints(self) -> bool:
    """Whether a run has saved a step."""
    return any(step.name.isdecimal() for step in self.path.glob('checkpoints/*/*'))

  @property
  def blocks(self) -> pathlib.Path:
    """Directory of the finished blocks of a quantization under way."""
    return self.path / 'blocks'

  def checkpoints(self, variant: str, seed: int) -> str:
    """Directory of the checkpoints of one run."""
    return checkpoint_directory(self.path, variant, seed)


def checkpoint_directory(path, variant: str, seed: int) -> str:
  """Directory of the checkpoints of a variant and seed in the workdir `path`."""
  return str(pathlib.Path(path) / 'checkpoints' / f'{variant}-seed{seed}')


def environment() -> dict[str, Any]:
  """Devices and versions, for `results.json`."""
  device = jax.devices()[0]
  return {
      'device': device.device_kind if device.platform != 'cpu' else platform.processor() or platform.machine(),
      'platform': device.platform, 'device_count': jax.device_count(), 'processes': jax.process_count(),
      'python': platform.python_version(), 'jax': jax.__version__,
  }


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes JSON so that a reader sees the old file or the new one; raises `UserError` if that fails.

  What is no finite number becomes null, since JSON has no name for it.
  """
  write_text(path, json.dumps(_finite(value), indent=1, allow_nan=False) + '\n')


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file so that a reader sees the old one or the new one; raises `UserError` if that fails."""
  partial = path.with_name(path.name + '.partial')
  with _naming_failures(path):
    partial.write_text(text, encoding='utf-8')
    os.replace(partial, path)


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Reads a JSON object; raises `UserError` for a file that holds none."""
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError, RecursionError) as error:
    raise errors.UserError(f'{path} cannot be read: {error}') from None
  if not isinstance(value, dict):
    raise errors.UserError(f'{path} holds no JSON object')
  return value


def read_results(folder: pathlib.Path) -> dict[str, Any]:
  """What the `results.json` of a workdir holds; raises `UserError` if it is none that a launch has written."""
  results = read_json(path := folder / 'results.json')
  evaluations = results.get('evaluations', [])
  if not isinstance(evaluations, list) or not all(isinstance(each, dict) for each in evaluations):
    raise errors.UserError(f'{path} is none that a launch has written: its evaluations are no list of objects')
  return results


def _finite(value: Any) -> Any:
  """JSON values with None in place of NaN and infinities."""
  return json.loads(json.dumps(value), parse_constant=lambda name: None)


@contextlib.contextmanager
def _naming_failures(path):
  try:
    yield
  except OSError as error:
    raise errors.UserError(f'cannot write {path}: {error.strerror}') from error


def _difference(old: Any, new: Any, path: str = '') -> str:
  """The first key at which two configurations differ, with both values; empty if they are equal."""
  if isinstance(old, dict) and isinstance(new, dict):
    for key in sorted({*old, *new}):
      place = f'{path}.{key}' if path else key
      if isinstance(old.get(key, new.get(key)), dict) and (key in old) != (key in new):
        return f'{place} {"is no longer there" if key in old else "was not there"}'
      if text := _difference(old.get(key), new.get(key), place):
        return text
    return ''
  return '' if old == new else f'{path} was {old!r} and is now {new!r}'
