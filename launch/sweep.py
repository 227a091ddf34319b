"""Quantizes a model in many ways and compares what comes of it: a row for each, of which only figures are kept.

  python -m launch.sweep --model=DIR --rows=configs/sweeps/w4a4.py:opt --text=FILE --workdir=OUT \
    [--only=PATTERN --part=1/4 --length=128 --tasks=FILE_OR_DIR --calibration=FILE]

  python -m launch.sweep --join=OUT1 --join=OUT2 --workdir=ALL

A file of rows defines get_rows(argument), which returns {name: a configuration of launch.quantize}. The model as it is
comes before them. Interrupted, a sweep goes on with the rows that are not scored yet. A row whose methods refuse the
model, or for which memory does not suffice, is left out, and named in the end. `--join` puts parts together, or seeds,
whose means and deviations a table has.
"""

import itertools
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import flags
import jax
import ml_collections

from jaxquant import errors
from jaxquant.evaluation import batching
from jaxquant.evaluation import tasks
from jaxquant.layers import device_kernels
from jaxquant.layers import sharding
from jaxquant.numerics import trees
from jaxquant.training import block_store
from launch import agreement
from launch import calibration
from launch import corpora
from launch import joining
from launch import model_flags
from launch import models
from launch import post_training
from launch import progress
from launch import python_file
from launch import quantize_config
from launch import runtime
from launch import scoring
from launch import stopping
from launch import workdir as workdirs

_ROWS = flags.DEFINE_string('rows', None, 'Python file of rows, and what its get_rows is called with: FILE[:ARGUMENT].')
_ONLY = flags.DEFINE_string('only', '.*', 'Rows to measure: a regular expression on the whole name.')
_PART = flags.DEFINE_string(
    'part', '1/1', 'Which of how many launches this is, 2/4 for instance, that share the rows; each has its workdir.')
_LENGTHS = flags.DEFINE_multi_integer(
    'length', [], 'Tokens of a window to score texts at; several are several datasets. That of training by default.')
_JOIN = flags.DEFINE_multi_string(
    'join', [], 'Workdirs of sweeps to put together, instead of measuring: parts of one, or of several seeds.')
_TASKS = scoring.define_tasks()
_CALIBRATION = calibration.define_texts()
_IMPLEMENTATION = scoring.define_implementation()
_MEASURING = ('model', 'variant', 'seed', 'step', 'fully_sharded', 'text', 'rows', 'only', 'part', 'length', 'tasks',
              'calibration', 'implementation')


class _Asked(NamedTuple):
  """What each row is scored on: texts at lengths, and tasks with their tokens."""

  texts: Sequence[corpora.Text]
  lengths: Sequence[int]
  tasks: list


def main(stop: Callable[[], None]) -> None:
  """Measures the rows of the flags, and calls `stop` after each piece of work."""
  started = time.monotonic()
  say = progress.Printer()
  if _JOIN.value:
    if unused := [name for name in _MEASURING if flags.FLAGS[name].present]:
      raise errors.UserError(f'--{unused[0]} means nothing beside --join, which measures nothing')
    agreement.agree(lambda: joining.join(_JOIN.value, say))
    return
  with jax.set_mesh(sharding.data_mesh()):
    model, rows, asked, workdir = agreement.agree(_open)
    results = {'evaluations': [], 'seconds': 0, 'decisions': {}, **agreement.agree(workdir.read_results)}
    evaluations, seconds, decisions = (results[key] for key in ('evaluations', 'seconds', 'decisions'))
    scored = {evaluation.get('row') for evaluation in evaluations}
    missing = {name: number for number, name in enumerate((None, *rows), 1) if not agreement.of_first(name in scored)}
    tokens = agreement.agree(lambda: _tokens(model, {name: rows[name] for name in missing if name}))
    params, description = model.load()
    trees.check_finite(params)
    say(description)
    asked, failed = asked._replace(texts=model_flags.texts(model.tokenizer())), []
    contents = _contents(params, asked, tokens)
    agreement.agree(lambda: _check_unchanged(results, contents, workdir))
    for name, number in missing.items():
      say(f'row {number}/{len(rows) + 1}: {name or "the model as it is"}')
      tree, store = params, None
      try:
        if name:
          made, store = _quantized(params, rows[name], model, tokens, workdir, say, stop)
          tree = made.params
        evaluations = evaluations + _scored(tree, name, rows.get(name), model, asked, say)
      except Exception as error:  # pylint: disable=broad-except
        if not name or not (reason := runtime.mistake(error)):
          raise
        say.error(f'row {name!r} is left out: {reason}')
        failed.append(name)
        continue
      if name:
        decisions = {**decisions, name: made.decisions}
      results = {'evaluations': evaluations, 'decisions': decisions, 'environment': workdirs.environment(),
                 'contents': contents, 'seconds': seconds + time.monotonic() - started}
      workdir.write_results(results)
      if store is not None:
        store.clear()
      stop()
  progress.finish(workdir, results, say)
  if failed:
    raise errors.UserError(f'{len(failed)} of {len(rows)} rows were left out, {failed[0]!r} first; see above')


def _contents(params, asked, tokens) -> dict[str, str]:
  """Fingerprints of what files of the same names could hold something else of, by what it is."""
  of_arrays = lambda arrays: block_store.fingerprint({}, arrays, None)
  found = {'the model': block_store.fingerprint(params, [], None), 'a text': of_arrays([t.tokens for t in asked.texts]),
           'a task': block_store.fingerprint({}, [], asked.tasks)}
  return found if tokens is None else {**found, 'what rows are calibrated on': of_arrays([tokens])}


def _check_unchanged(results, contents, workdir):
  """Raises `UserError` for other contents than rows were scored with so far."""
  before = results.get('contents', {})
  if changed := [name for name, now in contents.items() if before.get(name, now) != now]:
    raise errors.UserError(
        f'{workdir.path} has rows of other contents of the files: {changed[0]} has changed; take another workdir')


def _tokens(model, rows):
  """What to calibrate on, none for no rows; `UserError` if a row asks for more windows than there are."""
  tokens = calibration.tokens(_CALIBRATION.value, model) if rows else None
  for name, config in rows.items():
    try:
      post_training.check_tokens(config, model, tokens)
    except errors.UserError as error:
      raise errors.UserError(f'row {name!r}: {error}') from error
  return tokens


def _quantized(params, config, model, tokens, workdir, say, stop):
  """(what the driver returns for a configuration, the store of its blocks)."""
  prepared, recipe, _ = post_training.prepare(params, model, config)
  windows = post_training.windows(config, model, tokens)
  run = post_training.fingerprint(prepared, windows, model, config)
  return post_training.calibrated(prepared, recipe, windows, run, model, config, workdir, say, stop)


def _scored(tree, name, config, model, asked, say) -> list[dict[str, Any]]:
  """A record for each text at each length, by which it is called too where there are several, and for each task."""
  tree, records = device_kernels.prepared(tree, _IMPLEMENTATION.value), []
  options = {'implementation': _IMPLEMENTATION.value, 'row': name,
             'method': None if config is None else models.method(config.methods)}
  for length, text in itertools.product(asked.lengths, asked.texts):
    if len(asked.lengths) > 1:
      text = text._replace(name=f'{text.name} at {length}')
    batch_size = min(32, max(1, batching.BATCH_TOKENS // length))
    records.append(scoring.evaluate(tree, model, text, say, length=length, batch_size=batch_size, **options))
  for task, pairs in asked.tasks:
    records.append(scoring.evaluate_task(
        tree, model, task, pairs, say, length=model.length, batch_tokens=batching.BATCH_TOKENS, **options))
  return records


def _open():
  """The model, the rows, what to score and the workdir of the flags; `UserError` for what can be known to fail."""
  if not model_flags.text_names() and not _TASKS.value:
    raise errors.UserError('--text=FILE or --tasks=FILE_OR_DIR is needed: what to score')
  scoring.check_implementation(_IMPLEMENTATION.value, '--implementation')
  rows, found = _mine(read(_ROWS.value)), tasks.read(_TASKS.value)
  model = model_flags.model()
  calibration.check(_CALIBRATION.value, model)
  for name, config in rows.items():
    try:
      quantize_config.check(config)
      post_training.check_fit(config, model)
    except errors.UserError as error:
      raise errors.UserError(f'row {name!r}: {error}') from error
  lengths = list(dict.fromkeys(_LENGTHS.value)) or [model.length]
  for length in lengths:
    scoring.check_length(length, model)
  encoded = scoring.encoded(found, model, model.length)
  return model, rows, _Asked((), lengths, encoded), workdirs.Workdir(runtime.WORKDIR.value, {
      'name': f'sweep of {model.path.name}', 'model': model.architecture, 'texts': model_flags.text_names(),
      'tasks': list(_TASKS.value), 'rows': {name: config.to_dict() for name, config in rows.items()},
      'source': model_flags.source(model), 'lengths': lengths, 'calibration': list(_CALIBRATION.value),
      'implementation': _IMPLEMENTATION.value, 'training': {'length': model.length}})


def read(argument: str | None) -> dict[str, Any]:
  """The rows of FILE[:ARGUMENT], by name; raises `UserError` for whatever is wrong with the file."""
  if not argument:
    raise errors.UserError('--rows=FILE is needed, for instance --rows=configs/sweeps/w4a4.py')
  rows = python_file.call('rows', argument, 'get_rows')
  if not isinstance(rows, dict) or not rows or not all(
      isinstance(name, str) and name and isinstance(config, ml_collections.ConfigDict)
      for name, config in rows.items()):
    raise errors.UserError(f'--rows={argument}: get_rows() returns no configurations by name')
  return rows


def _mine(rows: dict[str, Any]) -> dict[str, Any]:
  """Those that --only and --part ask for."""
  try:
    chosen = [name for name in rows if re.fullmatch(_ONLY.value, name)]
  except re.error as error:
    raise errors.UserError(f'--only={_ONLY.value} is not a regular expression ({error})') from None
  part = re.fullmatch(r'(\d+)/(\d+)', _PART.value)
  if not part or not 1 <= int(part[1]) <= int(part[2]):
    raise errors.UserError(f'--part={_PART.value} is not one part of several, such as 2/4')
  if not (chosen := chosen[int(part[1]) - 1 :: int(part[2])]):
    raise errors.UserError(
        f'--only={_ONLY.value} --part={_PART.value} leaves none of {len(rows)} rows, by whole names such as '
        f'{next(iter(rows))!r}')
  return {name: rows[name] for name in chosen}


if __name__ == '__main__':
  runtime.launch(stopping.stoppable(main))
