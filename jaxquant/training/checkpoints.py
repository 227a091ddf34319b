"""Checkpoints: asynchronous, atomic, verified, the newest and the best kept. Orbax does the writing.

A step is a directory that appears when it is complete. Every entry of the state is an item of its own in it, so that an
evaluation reads the parameters and no optimizer; the item `manifest` says what the arrays must be. A step counts only
if the manifest's seal and all checksums are right; otherwise the step before it is used, and a line says so.
"""

import contextlib
import math
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp

from jaxquant import errors
from jaxquant.training import checksums
from jaxquant.training import manager
from jaxquant.training import manifest
from jaxquant.training import restoring
from jaxquant.training import silence


class Checkpoints:
  """The checkpoints of one run, in one directory. Where a run has several processes, each makes every call alike.

  Opening for writing removes what interrupted saves left behind. A damaged step that was passed over is renamed to
  `damaged-<step>`, so that the step can be saved again. Nothing is removed or renamed without a line on it.
  """

  def __init__(
      self, directory: str, *, keep_newest: int = 2, keep_best: int = 1, best_metric: str = 'loss',
      read_only: bool = False, report: Callable[[str], None] | None = None):
    """Opens `directory`, and makes it unless `read_only`.

    Args:
      directory: seen by all processes of the run, written by no other run.
      keep_newest: keep this many of the newest steps, at least one,
      keep_best: and this many of those with the smallest `best_metric`. All others are deleted.
      best_metric: a metric that `save` is given. A step without it, or where it is not finite, is never among the best.
      read_only: change nothing on disk; then `save` must not be called.
      report: called with each line, in the first process. By default they go to standard error.
    """
    if keep_newest < 1:
      raise errors.UserError(f'keep_newest must be at least 1, not {keep_newest}')
    self._directory = pathlib.Path(os.path.abspath(directory))
    self._policy = manager.KeepNewestAndBest(keep_newest, keep_best, best_metric)
    self._report = report or (lambda line: print(line, file=sys.stderr, flush=True))
    self._manager, self._saving = None, None
    silence.orbax()
    if not read_only:
      self._open()

  def save(
      self, step: int, state: dict[str, Any], *, metrics: dict[str, Any] | None = None, data: Any = None,
      metadata: dict[str, Any] | None = None) -> bool:
    """Copies `state` to the host, then writes it in the background; its arrays may be donated as soon as this returns.

    Args:
      step: larger than that of every other checkpoint here.
      state: trees of arrays by name. `params` must be there, made of dicts, nodes, arrays and None.
      metrics: scalars to choose the best step by. Those that are not finite are left out.
      data: the data iterator's state as JSON values, the same in every process.
      metadata: JSON values.

    Returns:
      True; False, and nothing is written, if the newest checkpoint is of this step already.

    Raises:
      UserError: the state, data or metadata cannot be saved; says why.
      CheckpointError: there is a later checkpoint; or this save failed, or the one before, which is only known now.
    """
    self.wait()
    newest = self._manager.latest_step()
    if newest == step:
      return False
    if newest is not None and newest > step:
      raise errors.CheckpointError(
          f'step {step} cannot be saved in {self._directory}, which holds step {newest}: remove the later checkpoints')
    names_fit = all(name.isidentifier() and name != restoring.MANIFEST for name in state)
    if not names_fit or manifest.PARAMS not in state:
      raise errors.UserError(f'a state needs {manifest.PARAMS} and identifiers as names, not {", ".join(state)}')
    arrays = manifest.stored_arrays(state)
    finite = {name: float(value) for name, value in (metrics or {}).items() if math.isfinite(value)}
    document = manifest.seal({
        'step': step, 'metrics': finite, 'data': data, 'metadata': metadata or {},
        'entries': manifest.describe(state, checksums.checksum(arrays))})
    items = {name: ocp.args.StandardSave(group) for name, group in manifest.by_entry(arrays).items()}
    items[restoring.MANIFEST] = ocp.args.JsonSave(document)
    self._saving, self._policy.metrics[step] = step, finite
    with self._naming_failures():
      self._manager.save(step, args=ocp.args.Composite(**items), force=True)
    return True

  def restore(
      self, step: int | None = None, *, target: dict[str, Any] | None = None,
      shardings: Any = None) -> restoring.Restored:
    """Reads the newest undamaged checkpoint.

    Args:
      step: read the checkpoint of this step or fail.
      target: trees by name, of ShapeDtypeStructs or arrays: what to read, to agree with what was saved in structure,
        nodes and their formats, shapes and dtypes. Entries that it does not name are not read. By default `params`
        is read and rebuilt as it was saved.
      shardings: where arrays go: a sharding, or trees of shardings by name in which a sharding may stand for a whole
        subtree, or a function of an array's path and ShapeDtypeStruct (a PRNG key counts as its uint32 words). What
        is left open goes where `target`'s array is, else to every device of the mesh in use (`jax.set_mesh`), else to
        the first device, or in a run of several processes to all.

    Raises:
      CheckpointError: no checkpoint is undamaged, or the newest such does not agree with `target`.
    """
    self.wait()
    if step is not None and step not in (steps := self.all_steps()):
      raise errors.CheckpointError(f'no step {step} in {self._directory}, only {steps}')
    damages = {}
    while (candidate := self._newest_except(damages) if step is None else step) is not None:
      try:
        restored = restoring.read(self._directory, candidate, target, shardings)
      except restoring.Damaged as damage:
        damages[candidate] = f'checkpoint step {candidate} in {self._directory} is damaged: {damage}'
        if step is not None:
          raise errors.CheckpointError(damages[step]) from damage
        continue
      if damages:
        for line in (*damages.values(), f'using checkpoint step {candidate}'):
          self._tell(line)
        if self._manager:
          self._open(set_aside=damages)
      return restored
    raise errors.CheckpointError('; '.join([f'no checkpoint to restore in {self._directory}', *damages.values()]))

  def all_steps(self) -> list[int]:
    """The steps that are complete on disk, ascending. Whether they are damaged shows when they are restored."""
    names = os.listdir(self._directory) if self._directory.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())

  def latest_step(self) -> int | None:
    """The last of `all_steps`, None if there are none."""
    return max(self.all_steps(), default=None)

  def best_step(self) -> int | None:
    """The step on disk with the smallest `best_metric`, None if none has it."""
    return next(iter(self._policy.ranked(self.all_steps(), self._read_metrics())), None)

  def metadata(self, step: int) -> dict[str, Any]:
    """What `save` was given with a step; empty if that is damaged."""
    with contextlib.suppress(restoring.Damaged):
      return restoring.read_manifest(self._directory, step)['metadata']
    return {}

  def wait(self) -> None:
    """Waits for the save under way; raises `CheckpointError` if it failed, which leaves earlier checkpoints intact."""
    if self._manager:
      with self._naming_failures():
        self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits like `wait`, then ends Orbax's threads."""
    self.wait()
    if self._manager:
      self._manager.close()

  def _open(self, set_aside: Iterable[int] = ()):
    if self._manager:
      with contextlib.suppress(Exception):
        self._manager.close()
    if jax.process_index() == 0:
      self._directory.mkdir(parents=True, exist_ok=True)
      for path in self._directory.glob('*.orbax-checkpoint-tmp*'):
        shutil.rmtree(path, ignore_errors=True)
        self._tell(f'removed {path}, left by a save that did not finish')
      for step in set_aside:
        names = [f'damaged-{step}', *(f'damaged-{step}-{i}' for i in range(2, 1000))]
        free = next(path for path in map(self._directory.joinpath, names) if not path.exists())
        (self._directory / str(step)).rename(free)
        self._tell(f'renamed {self._directory / str(step)} to {free.name}')
    multihost_utils.sync_global_devices('jaxquant.checkpoints')
    self._policy.metrics = self._read_metrics()
    self._manager = manager.Manager(self._directory, self._policy)

  @contextlib.contextmanager
  def _naming_failures(self):
    try:
      yield
    except Exception as error:
      # Anew, as a manager whose save has failed reports the failure once more at the next save.
      self._open()
      reason = restoring.one_line(error)
      raise errors.CheckpointError(
          f'checkpoint step {self._saving} could not be saved in {self._directory}: {reason}') from error

  def _read_metrics(self) -> dict[int, dict[str, float]]:
    metrics = {}
    for step in self.all_steps():
      with contextlib.suppress(restoring.Damaged):
        metrics[step] = restoring.read_manifest(self._directory, step)['metrics']
    return metrics

  def _newest_except(self, steps) -> int | None:
    newest = max((step for step in self.all_steps() if step not in steps), default=-1)
    # A shared file system need not show every process the same directory at the same time.
    newest = int(multihost_utils.broadcast_one_to_all(np.int32(newest)))
    return None if newest < 0 else newest

  def _tell(self, line):
    if jax.process_index() == 0:
      self._report(line)


def load_params(directory: str, step: int | None = None, *, shardings: Any = None, report=None) -> restoring.Restored:
  """Reads `params`, and no optimizer, rebuilt from what the checkpoint says of it; no model is needed.

  Args:
    directory, shardings, report: as for `Checkpoints`, opened read-only, and `Checkpoints.restore`.
    step: the newest undamaged one by default.

  Raises:
    CheckpointError: there is no such checkpoint, or it is damaged.
  """
  return Checkpoints(directory, read_only=True, report=report).restore(step, shardings=shardings)
