"""Finished blocks of a calibration on disk, so that a run that was interrupted continues behind them.

Every block is a checkpoint of its own, with its decisions in the metadata: it appears when it is complete, and is
verified array by array when it is read. What a run would compute again is never worth a doubt, so a block that is
damaged, or of another run, is removed with a line that says so.
"""

import hashlib
import json
import pathlib
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from jaxquant import errors
from jaxquant.training import checkpoints
from jaxquant.training import checksums
from jaxquant.training import manifest
from jaxquant.training import restoring

_STEP = 0  # a block is saved once


def fingerprint(params: Any, batches: Sequence[Any], configuration: Any) -> str:
  """What the result of a calibration follows from, as a SHA-256 in hexadecimal.

  Args:
    params: the tree before calibration; every array counts with its checksum, and every node with its format.
    batches: calibration data, arrays.
    configuration: JSON values: model, methods and their options.
  """
  state = {manifest.PARAMS: params, 'batches': list(batches)}
  entries = manifest.describe(state, checksums.checksum(manifest.stored_arrays(state)))
  return hashlib.sha256(json.dumps([entries, configuration], sort_keys=True).encode()).hexdigest()


class BlockStore:
  """A `calibration.stores.Store` in a directory. Where a run has several processes, each makes every call alike."""

  def __init__(self, directory: str | pathlib.Path, run: str, report: Callable[[str], None] | None = None):
    """Opens `directory`, which need not exist before the first block is saved.

    Args:
      directory: seen by all processes of the run, written by no other run at the same time.
      run: `fingerprint` of the run; blocks of another one are not returned.
      report: called with each line, in the first process. By default they go to standard error.
    """
    self._directory, self._run = pathlib.Path(directory), run
    self._report = report or (lambda line: print(line, file=sys.stderr, flush=True))

  def finished(self, path: str) -> tuple[dict, dict] | None:
    """(subtree, decisions) of the block at `path` if this run finished it earlier and all of it is as it was saved."""
    folder = self._folder(path)
    # A shared file system need not show every process the same directory at the same time.
    if not multihost_utils.broadcast_one_to_all(np.bool_((folder / str(_STEP)).exists())):
      return None
    try:
      restored = restoring.read(folder, _STEP, None, None)
    except (restoring.Damaged, errors.CheckpointError) as damage:
      self._remove(folder, f'removed {folder}, which is damaged and is computed again: {damage}')
      return None
    if (restored.metadata['run'], restored.metadata['block']) != (self._run, path):
      self._remove(self._directory, f'removed {self._directory}, the blocks of another model, data or configuration')
      return None
    return restored.state[manifest.PARAMS], json.loads(restored.metadata['decisions'])

  def save(self, path: str, params: dict, decisions: dict) -> None:
    """Keeps a finished block; returns when it is on disk. One that was kept before is replaced.

    Raises:
      CheckpointError: it could not be written.
    """
    folder = self._folder(path)
    if jax.process_index() == 0 and (folder / str(_STEP)).exists():
      shutil.rmtree(folder)
    saved = checkpoints.Checkpoints(str(folder), keep_newest=1, keep_best=0, report=self._report)
    # As text, since a decision may be a number that JSON proper lacks.
    metadata = {'run': self._run, 'block': path, 'decisions': json.dumps(decisions)}
    saved.save(_STEP, {manifest.PARAMS: params}, metadata=metadata)
    saved.close()

  def clear(self) -> None:
    """Removes all blocks: the run has saved its result."""
    self._remove(self._directory)

  def _folder(self, path: str) -> pathlib.Path:
    return self._directory / (path.replace('/', '.') or 'root')

  def _remove(self, folder, line=None):
    if jax.process_index() == 0:
      shutil.rmtree(folder, ignore_errors=True)
      if line:
        self._report(line)
    multihost_utils.sync_global_devices('jaxquant.block_store')
