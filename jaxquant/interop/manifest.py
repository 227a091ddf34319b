"""A manifest beside a quantized model: what every parameter is, where the model comes from, and checksums of its files.

It is written last, and the directory that it describes gets its name after that: what has no manifest, or another one
than its files ask for, is not what was written.
"""

import hashlib
import json
import os
import pathlib
from typing import Any

from jaxquant import errors
from jaxquant.numerics import nodes
from jaxquant.numerics import qtensor
from jaxquant.numerics import trees

NAME = 'jaxquant_manifest.json'
_VERSION = 1


def describe(params: Any) -> dict[str, Any]:
  """JSON values that say what every array and node of a tree is: its format, or its dtype, and its shape, by path."""
  found = {}
  for path, value in trees.walk(params):
    if isinstance(value, qtensor.QTensor):
      found[path] = {'format': value.format.name, 'shape': list(value.shape), 'axis': value.axis,
                     'group_size': value.group_size}
    elif nodes.is_node(value):
      found[path] = {'quantizer': nodes.encode(value)}
    elif value is not None and not isinstance(value, dict):
      found[path] = {'dtype': value.dtype.name, 'shape': list(value.shape)}
  return found


def write(
    folder: pathlib.Path, params: Any, provenance: dict[str, Any], decisions: dict[str, Any],
    within: tuple[str, ...] = ()) -> None:
  """Writes the manifest of a directory, all of whose files that it is to describe are there.

  Args:
    folder: the directory.
    params: the tree that its files hold.
    provenance: JSON values: what it was made from, and how.
    decisions: what calibration measured and decided, by path.
    within: files and folders that it describes; all by default.
  """
  content = {'version': _VERSION, 'provenance': provenance, 'parameters': describe(params), 'decisions': decisions,
             'within': list(within),
             'files': {str(path.relative_to(folder)): _described(path) for path in _files(folder, within)}}
  partial = folder / f'{NAME}.partial'
  with open(partial, 'w', encoding='utf-8') as file:
    json.dump(content, file, indent=1)
    file.flush()
    os.fsync(file.fileno())
  os.replace(partial, folder / NAME)


def verify(folder: pathlib.Path, contents: bool = True) -> dict[str, Any]:
  """The manifest of a directory whose files are those that it was written for.

  Args:
    folder: the directory.
    contents: whether files are read from end to end, and new ones looked for; otherwise sizes are compared.

  Raises:
    CheckpointError: there is no manifest, or a file is missing, new or different.
  """
  try:
    content = json.loads((folder / NAME).read_text(encoding='utf-8'))
    written, within = content['files'], tuple(content['within'])
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise errors.CheckpointError(f'{folder} has no readable {NAME}: {" ".join(str(error).split())}') from None
  there = {str(path.relative_to(folder)): path for path in _files(folder, within)}
  for name in sorted({*written, *there}):
    if name not in there:
      raise errors.CheckpointError(f'{folder} lacks {name}, which it was written with')
    if contents and name not in written:
      raise errors.CheckpointError(f'{there[name]} was not written with the rest')
    if name in written and not _is(there[name], written[name], contents):
      raise errors.CheckpointError(f'{there[name]} is not what was written')
  return content


def verify_if_there(folder: pathlib.Path, contents: bool) -> None:
  """Verifies a directory that may be one without a manifest; raises `CheckpointError` as `verify` does."""
  if (folder / NAME).exists():
    verify(folder, contents)


def _is(path: pathlib.Path, written: Any, contents: bool) -> bool:
  """Whether a file is what was written, as far as its size says it where its contents are not asked for."""
  if contents:
    return _described(path) == written
  return isinstance(written, dict) and path.stat().st_size == written.get('bytes')


def _files(folder: pathlib.Path, within: tuple[str, ...]) -> list[pathlib.Path]:
  inside = lambda path: not within or path.relative_to(folder).parts[0] in within
  return sorted(path for path in folder.rglob('*') if path.is_file() and path.name != NAME and inside(path))


def _described(path: pathlib.Path) -> dict[str, Any]:
  with open(path, 'rb') as file:
    return {'bytes': path.stat().st_size, 'sha256': hashlib.file_digest(file, 'sha256').hexdigest()}
