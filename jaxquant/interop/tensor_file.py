"""Safetensors files: a header of JSON, then raw arrays. Read by mapping the file into memory, checked before any use.

  8 bytes     length of the header, little end first
  header      {name: {"dtype", "shape", "data_offsets": [begin, end]}}, and "__metadata__": {string: string}
  the rest    the arrays in C order; they neither overlap nor leave holes
"""

import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxquant import errors

DTYPES = {
    'F64': np.float64, 'F32': np.float32, 'F16': np.float16, 'BF16': ml_dtypes.bfloat16, 'I64': np.int64,
    'I32': np.int32, 'I16': np.int16, 'I8': np.int8, 'U8': np.uint8, 'U16': np.uint16, 'U32': np.uint32,
    'U64': np.uint64, 'BOOL': np.bool_, 'F8_E4M3': ml_dtypes.float8_e4m3fn, 'F8_E5M2': ml_dtypes.float8_e5m2,
}
_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
_MOST_HEADER = 100_000_000
_MOST_AXES = 32  # that any NumPy has
_METADATA = '__metadata__'
# What a pickle, or the ZIP archive that torch.save makes of one, begins with.
_PICKLES = (b'PK\x03\x04', b'\x80\x02', b'\x80\x03', b'\x80\x04', b'\x80\x05')


class Tensor(NamedTuple):
  """Where an array of a file is: its dtype, its shape, and its first byte in the file."""

  dtype: np.dtype
  shape: tuple[int, ...]
  begin: int

  @property
  def nbytes(self) -> int:
    """Bytes that it takes."""
    return math.prod(self.shape) * self.dtype.itemsize


class TensorFile:
  """A safetensors file opened for reading.

  Attributes:
    path: of the file.
    tensors: {name: Tensor}.
    metadata: strings by name.
  """

  def __init__(self, path: str | os.PathLike[str]):
    """Reads and checks the header.

    Raises:
      UserError: the file cannot be read, is a pickle, or its header and its length do not agree.
    """
    self.path = pathlib.Path(path)
    try:
      with open(self.path, 'rb') as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(9)
        self._refuse_pickle(start)
        length = int.from_bytes(start[:8], 'little')
        self._check(size >= 8 and length <= min(size - 8, _MOST_HEADER), f'no header in a file of {size} bytes')
        header = (start[8:] + file.read(max(length - 1, 0)))[:length]
    except OSError as error:
      raise errors.UserError(f'{self.path} cannot be read: {error.strerror}') from None
    self._first = 8 + length
    self.tensors, self.metadata = self._parse(header, size - self._first)

  def array(self, name: str) -> np.ndarray:
    """The array called `name`, read-only, its bytes still in the file until they are used."""
    tensor = self.tensors[name]
    if not tensor.nbytes:
      return np.zeros(tensor.shape, tensor.dtype)
    return np.memmap(self.path, tensor.dtype, 'r', tensor.begin, tensor.shape)

  def _refuse_pickle(self, start: bytes) -> None:
    """Refuses what begins as a pickle does, and not, as a short header may, like one with JSON behind its length."""
    if start.startswith(_PICKLES) and start[8:] != b'{':
      raise errors.UserError(
          f'{self.path} is a pickle, which may run any program when it is read; convert it to safetensors: '
          'model.save_pretrained(DIR) of transformers does, where you trust its source')

  def _parse(self, header: bytes, size: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
      entries = json.loads(header.decode(), object_pairs_hook=self._unique)
    except errors.UserError:
      raise
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or a number of thousands of digits
      raise errors.UserError(f'{self.path} is no safetensors file: its header is no JSON ({error})') from None
    self._check(isinstance(entries, dict), 'its header is no JSON object')
    metadata = entries.pop(_METADATA, {})
    self._check(isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values()),
                'its metadata are no strings')
    tensors = {name: self._tensor(name, entry) for name, entry in entries.items()}
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].nbytes)):
      begin = tensor.begin - self._first
      self._check(begin == end, f'{name} begins at byte {begin} of the data, where {end} is expected: '
                  'tensors overlap or leave a hole')
      end = begin + tensor.nbytes
    self._check(
        end == size, f'its tensors take {end} bytes, and {size} are there: it is truncated or goes on behind them')
    return tensors, metadata

  def _tensor(self, name: str, entry: Any) -> Tensor:
    known = isinstance(entry, dict) and set(entry) == {'dtype', 'shape', 'data_offsets'}
    self._check(known, f'{name} is not described by dtype, shape and data_offsets')
    shape, offsets = entry['shape'], entry['data_offsets']
    natural = lambda value: isinstance(value, list) and all(type(n) is int and 0 <= n < 2**48 for n in value)
    self._check(natural(shape) and len(shape) <= _MOST_AXES, f'the shape of {name} is {shape!r}')
    self._check(natural(offsets) and len(offsets) == 2, f'the offsets of {name} are {offsets!r}')
    self._check(isinstance(entry['dtype'], str) and entry['dtype'] in DTYPES,
                f'{name} is of dtype {entry["dtype"]!r}; there are {", ".join(DTYPES)}')
    tensor = Tensor(np.dtype(DTYPES[entry['dtype']]), tuple(shape), self._first + offsets[0])
    begin, end = offsets
    self._check(end - begin == tensor.nbytes,
                f'{name}, {entry["dtype"]} {shape}, takes {tensor.nbytes} bytes, not those from {begin} to {end}')
    return tensor

  def _unique(self, pairs):
    entries = dict(pairs)
    if len(entries) < len(pairs):
      names = [name for name, _ in pairs]
      twice = next(name for name in names if names.count(name) > 1)
      raise errors.UserError(f'{self.path} names {twice!r} twice')
    return entries

  def _check(self, condition: bool, problem: str) -> None:
    if not condition:
      raise errors.UserError(f'{self.path} is no whole safetensors file: {problem}')


def write(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
  """Writes arrays to a safetensors file, the widest dtypes first, so that each array is aligned to its dtype.

  Raises:
    UserError: the file cannot be written.
  """
  names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
  header, end = {_METADATA: dict(metadata)} if metadata else {}, 0
  for name in names:
    array = arrays[name]
    header[name] = {'dtype': _NAMES[array.dtype], 'shape': list(array.shape), 'data_offsets': [end, end + array.nbytes]}
    end += array.nbytes
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)
  try:
    with open(path, 'wb') as file:
      file.write(len(text).to_bytes(8, 'little') + text)
      for part in _parts(arrays[name] for name in names):
        file.write(part)
      file.flush()
      os.fsync(file.fileno())
  except OSError as error:
    raise errors.UserError(f'cannot write {path}: {error.strerror}') from error


def _parts(arrays: Iterable[np.ndarray]):
  for array in arrays:
    yield np.ascontiguousarray(array).reshape(-1).view(np.uint8)
