"""The scores of several sweeps as those of one: parts that shared its rows, or the seeds of a model."""

import itertools
import pathlib
from collections.abc import Sequence

from jaxquant import errors
from launch import progress
from launch import runtime
from launch import workdir as workdirs

_SCORE = ('row', 'variant', 'seed', 'dataset')  # what tells one from another
_ALIKE = ('lengths', 'calibration', 'implementation', 'training')  # keys of a sweep's configuration


def join(paths: Sequence[str], say: progress.Printer) -> None:
  """Writes results and report of all into the workdir of the flags; rows are in the order of parts that took turns.

  Args:
    paths: workdirs of `launch.sweep`.
    say: prints.

  Raises:
    UserError: one is no such workdir, they are of models of different architectures, were measured otherwise, or have
      different configurations of a row, or different scores of it for the same model.
  """
  configs = [workdirs.read_json(pathlib.Path(path) / 'config.json') for path in paths]
  results = [workdirs.read_results(pathlib.Path(path)) for path in paths]
  _check(paths, configs, results, say)
  found = {}
  for path, evaluation in ((path, each) for path, result in zip(paths, results) for each in result['evaluations']):
    key = tuple(evaluation.get(name) for name in _SCORE)
    if found.setdefault(key, evaluation) != evaluation:
      raise errors.UserError(f'--join={path} has another score than those before it for row {key[0]!r} of {key[1]} '
                             f'seed {key[2]} on {key[3]}')
  turns = itertools.chain.from_iterable(itertools.zip_longest(*(config['rows'] for config in configs)))
  places = {row: place for place, row in enumerate(dict.fromkeys(itertools.chain([None], turns)))}
  evaluations = sorted(found.values(), key=lambda evaluation: places.get(evaluation.get('row'), len(places)))
  workdir = workdirs.Workdir(runtime.WORKDIR.value, {
      'name': f'{len(paths)} sweeps', 'model': configs[0]['model'], 'training': configs[0]['training'],
      'joined': list(map(str, paths))})
  progress.finish(workdir, {
      'evaluations': evaluations, 'environment': results[0]['environment'],
      'seconds': sum(result['seconds'] for result in results)}, say)


def _check(paths, configs, results, say) -> None:
  """Raises `UserError` for what cannot be put together, and says which rows have no scores."""
  rows = {}
  for path, config, result in zip(paths, configs, results):
    if not isinstance(config.get('rows'), dict) or not {'evaluations', 'environment', 'seconds'} <= set(result):
      raise errors.UserError(f'--join={path} is no workdir of a sweep')
    if config['model'] != configs[0]['model']:
      raise errors.UserError(f'--join={path} is of a model of another architecture than --join={paths[0]}')
    for key in _ALIKE:
      if config.get(key) != configs[0].get(key):
        raise errors.UserError(f'--join={path} was measured with {key} {config.get(key)!r}, --join={paths[0]} with '
                               f'{configs[0].get(key)!r}')
    for name, row in config['rows'].items():
      if rows.setdefault(name, row) != row:
        raise errors.UserError(f'--join={path} has another configuration than those before it for row {name!r}')
    scored = {evaluation.get('row') for evaluation in result['evaluations']}
    if lacking := [name for name in config['rows'] if name not in scored]:
      say.error(f'--join={path} has no scores of row {lacking[0]!r}' + (
          f', nor of {len(lacking) - 1} others' if lacking[1:] else ''))
