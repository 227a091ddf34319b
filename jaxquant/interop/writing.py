"""Writing a model directory so that it is whole or not there: into a folder of another name, renamed at the end."""

import os
import pathlib
import shutil
import tempfile
from typing import Any, Protocol

import numpy as np

from jaxquant import errors
from jaxquant.interop import directory
from jaxquant.interop import export
from jaxquant.interop import manifest
from jaxquant.interop import tensor_file

_SHARD_BYTES = 5_000_000_000


class Origin(Protocol):
  """What stands beside the tensors: a `directory.Directory`, or the `descriptions.Description` of a model of ours.

  Attributes:
    config: the values of `config.json`, of the float model.
  """

  config: dict[str, Any]

  def carry(self, folder: pathlib.Path) -> None:
    """Writes to `folder` what goes along: how text is tokenized, how the model generates."""


def check_new(path: str | os.PathLike[str]) -> None:
  """Raises `UserError` if the directory that is to be written exists."""
  if os.path.lexists(path):
    raise errors.UserError(f'{path} exists already; an export writes a new directory')


def write(
    path: str | os.PathLike[str], params: dict, origin: Origin, kind: str, *, dtype: str | None = None,
    provenance: dict[str, Any] | None = None, decisions: dict[str, Any] | None = None,
    shard_bytes: int = _SHARD_BYTES) -> pathlib.Path:
  """Writes a model in a format of others.

  Args:
    path: the directory to write, which must not exist.
    params: the tree.
    origin: what the model was before it was quantized.
    kind, dtype: as for `export.Export`.
    provenance, decisions: for the manifest.
    shard_bytes: of a file at most, but for larger tensors.

  Returns:
    The directory.

  Raises:
    UserError: the format cannot express the tree; or the directory exists, or cannot be written.
  """
  path = pathlib.Path(path)
  check_new(path)
  made = export.Export(params, origin.config, kind, dtype)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(tempfile.mkdtemp(prefix=f'.{path.name}.partial-', dir=path.parent))
  except OSError as error:
    raise errors.UserError(f'cannot write {path}: {error.strerror}') from error
  try:
    _shards(partial, made, shard_bytes)
    origin.carry(partial)
    directory.write_json(partial / directory.CONFIG, made.config())
    if kind.startswith('gptq'):  # where older loaders look
      directory.write_json(partial / 'quantize_config.json', made.codec.config())
    manifest.write(partial, params, {'format': kind, **(provenance or {})}, decisions or {})
    partial.chmod(0o755)
    os.rename(partial, path)
  except OSError as error:
    raise errors.UserError(f'cannot write {path}: {error.strerror}') from error
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return path


def _shards(folder: pathlib.Path, made: export.Export, shard_bytes: int) -> None:
  """Writes the tensors to one file, or to several with an index."""
  shards, total, held = [], 0, {}
  for name, array in made.tensors():
    if held and sum(x.nbytes for x in held.values()) + array.nbytes > shard_bytes:
      shards.append(_shard(folder, len(shards), held))
      held = {}
    held[name] = np.asarray(array)
    total += array.nbytes
  shards.append(_shard(folder, len(shards), held))
  if len(shards) == 1:
    os.rename(shards[0][0], folder / directory.SINGLE)
    return
  index = {}
  for i, (partial, names) in enumerate(shards, 1):
    name = f'model-{i:05}-of-{len(shards):05}.safetensors'
    os.rename(partial, folder / name)
    index.update(dict.fromkeys(names, name))
  directory.write_json(
      folder / directory.INDEX, {'metadata': {'total_size': total}, 'weight_map': dict(sorted(index.items()))})


def _shard(folder: pathlib.Path, number: int, arrays: dict[str, np.ndarray]) -> tuple[pathlib.Path, list[str]]:
  """(file, names of its tensors); the file gets its name when it is known how many there are."""
  path = folder / f'{number}.partial'
  tensor_file.write(path, arrays, {'format': 'pt'})
  return path, list(arrays)
