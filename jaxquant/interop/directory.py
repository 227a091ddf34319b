"""A model directory as Hugging Face lays it out: `config.json`, `tokenizer.json`, and one or several safetensors files.

Nothing in it is executed, no file outside of it is read, and whatever is wrong with it is said in one line.
"""

import functools
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any

import numpy as np

from jaxquant import errors
from jaxquant.interop import tensor_file

CONFIG, INDEX, SINGLE = 'config.json', 'model.safetensors.index.json', 'model.safetensors'
# What goes along where a model is exported: how it is configured, how its text is tokenized, how it generates.
CARRIED = (
    'generation_config.json', 'tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json',
    'tokenizer.model', 'vocab.json', 'merges.txt', 'vocab.txt', 'sentencepiece.bpe.model', 'chat_template.jinja')
_PICKLED = ('.bin', '.pt', '.pth', '.ckpt', '.pkl', '.pickle', '.npy', '.npz')
_MOST_JSON = 100_000_000


def write_json(path: pathlib.Path, values: dict[str, Any]) -> None:
  """Writes a file of JSON as others write theirs."""
  path.write_text(json.dumps(values, indent=2) + '\n', encoding='utf-8')


class Directory:
  """A model directory opened for reading.

  Attributes:
    path: of the directory.
    config: the values of `config.json`.
  """

  def __init__(self, path: str | os.PathLike[str]):
    """Reads `config.json`; raises `UserError` if there is none."""
    self.path = pathlib.Path(path)
    if not self.path.is_dir():
      raise errors.UserError(f'{path} is not a directory')
    self.config = self.json(CONFIG)

  def file(self, name: str) -> pathlib.Path:
    """The path of a file of the directory.

    Raises:
      UserError: there is no such file, or it lies elsewhere: by its name, or as a symbolic link.
    """
    if not isinstance(name, str) or pathlib.PurePath(name).name != name or name in ('', '.', '..') or '\\' in name:
      raise errors.UserError(f'{self.path} refers to {name!r}, which is not the name of a file in it')
    path = self.path / name
    if not self.has(name):
      raise errors.UserError(f'{self.path} has no {name}')
    if path.resolve().parent != self.path.resolve():
      raise errors.UserError(f'{path} is a link to a file outside of {self.path}; copy the files into one directory')
    return path

  def has(self, name: str) -> bool:
    """Whether there is a file of this name, be it a link; raises `UserError` for a name that no file can have."""
    try:
      return (self.path / name).is_file()
    except OSError as error:
      raise errors.UserError(f'{self.path / name} cannot be read: {error.strerror}') from None

  def json(self, name: str) -> dict[str, Any]:
    """The JSON object in a file; raises `UserError` for a file that holds none."""
    path = self.file(name)
    try:
      if path.stat().st_size > _MOST_JSON:
        raise ValueError(f'it has {path.stat().st_size} bytes')
      value = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:
      raise errors.UserError(f'{path} cannot be read: {error}') from None
    if not isinstance(value, dict):
      raise errors.UserError(f'{path} holds no JSON object')
    return value

  @functools.cached_property
  def files(self) -> dict[str, tensor_file.TensorFile]:
    """The safetensors file that holds each tensor, by the tensor's name.

    Raises:
      UserError: there are no such files, an index names tensors or files that are not there, leaves out tensors that
        are, or two files hold the same tensor.
    """
    if not self.has(INDEX):
      opened = self._open(SINGLE)
      return dict.fromkeys(opened.tensors, opened)
    index = self.json(INDEX).get('weight_map')
    if not isinstance(index, dict) or not index or not all(isinstance(name, str) for name in index.values()):
      raise errors.UserError(f'{self.path / INDEX} has no weight_map of file names')
    opened = {name: self._open(name) for name in sorted(set(index.values()))}
    if lost := [name for name, file in index.items() if name not in opened[file].tensors]:
      raise errors.UserError(f'{self.path / INDEX} says that {lost[0]} is in {index[lost[0]]}, which lacks it')
    for name, file in opened.items():
      if other := [tensor for tensor in file.tensors if index.get(tensor) != name]:
        raise errors.UserError(f'{file.path} holds {other[0]}, which {INDEX} '
                               + (f'says is in {index[other[0]]}' if other[0] in index else 'does not name'))
    return {tensor: opened[name] for tensor, name in index.items()}

  def tensor(self, name: str) -> tensor_file.Tensor:
    """Dtype and shape of a tensor."""
    return self.files[name].tensors[name]

  def array(self, name: str) -> np.ndarray:
    """A tensor, mapped into memory."""
    return self.files[name].array(name)

  def carry(self, folder: pathlib.Path) -> None:
    """Copies what goes along where the model is exported to `folder`; raises `UserError` for a link out of here."""
    for name in CARRIED:
      if self.has(name):
        shutil.copyfile(self.file(name), folder / name)

  def fingerprint(self) -> str:
    """SHA-256, in hexadecimal, of `config.json` and all safetensors files; reads them from end to end."""
    total = hashlib.sha256()
    for path in [self.file(CONFIG), *sorted({file.path for file in self.files.values()})]:
      with open(path, 'rb') as file:
        total.update(hashlib.file_digest(file, 'sha256').digest())
    return total.hexdigest()

  def _open(self, name: str) -> tensor_file.TensorFile:
    if not self.has(name):
      pickled = sorted(path.name for path in self.path.iterdir() if path.suffix in _PICKLED)
      if pickled:
        raise errors.UserError(f'{self.path} has no {name}, only {pickled[0]}: pickles may run any program when they '
                               'are read; convert it to safetensors: model.save_pretrained(DIR) of transformers does')
    return tensor_file.TensorFile(self.file(name))
