"""Arrays of a safetensors file as float32 in the orientation of our tree, read from the disk slab by slab.

A slab is a run of rows of the tensor, read with one call into a buffer that stays in a processor's cache, and written
from there where it belongs, turned and widened on the way. So every byte leaves the disk once and in order, memory
holds the result and little else, and no page of the file is mapped.
"""

import itertools
import os

import ml_dtypes
import numpy as np

from jaxquant import errors
from jaxquant.interop import names
from jaxquant.interop import tensor_file

# Rows that are turned at a time: what they become is written in runs of four times as many bytes.
_ROWS = 128
# Bytes of a slab that is not turned.
_BYTES = 1 << 20
# Bytes between the rows of a slab: without them, rows of a power of two share the same few lines of a cache.
_GAP = 64
# Columns that are turned at a time, so that what is read and what is written stays in the cache.
_COLUMNS = 1024
# Where an array begins that a CPU device takes as it is, without a copy of its own.
_ALIGNMENT = 64


def read(file: tensor_file.TensorFile, name: str, layout: names.Layout) -> np.ndarray:
  """An array of our tree.

  Args:
    file: that holds it.
    name: of its tensor there, of a floating dtype.
    layout: how it lies in the tensor.

  Returns:
    What `layout.take` finds in the tensor, float32 in C order, at an address that is a multiple of 64 bytes.

  Raises:
    UserError: the file cannot be read, or has become shorter.
  """
  tensor = file.tensors[name]
  if not tensor.nbytes:
    return _empty(layout.take(np.empty(tensor.shape, np.bool_)).shape)
  try:
    with open(file.path, 'rb', buffering=0) as opened:
      turned = layout.transposed and len(tensor.shape) == 2
      return (_turned if turned else _straight)(opened.fileno(), tensor, layout)
  except (OSError, EOFError) as error:
    raise errors.UserError(f'{file.path} cannot be read: {getattr(error, "strerror", None) or error}') from None


def _turned(descriptor: int, tensor: tensor_file.Tensor, layout: names.Layout) -> np.ndarray:
  """The array whose transpose is stored, or is a selection of the rows that are."""
  count, columns = tensor.shape
  rows = layout._replace(transposed=False).take(np.arange(count)[None])[0]
  made = _empty((columns, len(rows)))
  slab, scratch = _spaced(tensor.dtype, columns), np.empty((_COLUMNS // 2, _ROWS), np.uint32)
  views = [memoryview(row).cast('B') for row in slab.view(np.dtype(f'u{tensor.dtype.itemsize}'))]
  for first in range(0, len(rows), _ROWS):
    wanted = rows[first : first + _ROWS]
    starts = [0, *(np.flatnonzero(np.diff(wanted) != 1) + 1), len(wanted)]
    for start, end in itertools.pairwise(starts):
      _fill(descriptor, views[start:end], tensor.begin + int(wanted[start]) * columns * tensor.dtype.itemsize)
    for left in range(0, columns, _COLUMNS):
      part = slab[: len(wanted), left : left + _COLUMNS]
      _turn(part, made[left : left + _COLUMNS, first : first + len(wanted)], scratch)
  return made


def _turn(slab: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
  """Writes the transpose of `slab` [rows, columns] to `out`, float32 [columns, rows].

  Two neighbours of 16 bits are turned as one word of 32, which takes half the loads and stores, and are told apart
  afterwards, in runs.
  """
  if slab.dtype.itemsize != 2 or slab.shape[1] % 2:
    out[...] = slab.T
    return
  words = scratch[: slab.shape[1] // 2, : slab.shape[0]]
  np.copyto(words, slab.view(np.uint32).T)
  _widen(words, slab.dtype, out[1::2])
  np.left_shift(words, np.uint32(16), out=words)
  _widen(words, slab.dtype, out[0::2])


def _widen(words: np.ndarray, dtype: np.dtype, out: np.ndarray) -> None:
  """Writes the values of `dtype`, of 16 bits, in the upper halves of `words`, uint32, to `out`, float32."""
  if dtype == ml_dtypes.bfloat16:
    np.bitwise_and(words, np.uint32(0xffff0000), out=out.view(np.uint32))
    return
  # Sign and the other bits of a float16 where a float32 has them; the product moves the exponent to its bias, and makes
  # numbers of what was below the smallest normal one. NumPy converts a sixth as fast.
  bits = out.view(np.int32)
  np.right_shift(words.view(np.int32), 3, out=bits)
  np.bitwise_and(bits, np.int32(-0x70002000), out=bits)
  np.multiply(out, np.float32(2**112), out=out)
  if out.size and max(out.max(), -out.min()) >= 2**16:  # infinities and what is no number
    np.bitwise_or(bits, np.int32(0x7f800000), out=bits, where=np.abs(out) >= 2**16)


def _straight(descriptor: int, tensor: tensor_file.Tensor, layout: names.Layout) -> np.ndarray:
  """The array that is stored, or a selection of its columns."""
  shape = tensor.shape if len(tensor.shape) > 1 else (1, *tensor.shape)
  one = layout._replace(transposed=False, skipped=0)
  skipped, width = layout.skipped, tensor.nbytes // shape[0]
  made = _empty((shape[0] - skipped, *one.take(np.empty((1, *shape[1:]), np.bool_)).shape[1:]))
  if tensor.dtype == np.float32 and not layout.fused:
    _fill(descriptor, [memoryview(made).cast('B')], tensor.begin + skipped * width)
    return made.reshape(-1) if len(tensor.shape) == 1 else made
  many = max(_BYTES // width, 1)
  slab = np.empty((min(many, len(made)), *shape[1:]), tensor.dtype)
  for first in range(0, len(made), many):
    part = slab[: len(made) - first]
    _fill(descriptor, [memoryview(part.view(np.uint8)).cast('B')], tensor.begin + (skipped + first) * width)
    if tensor.dtype.itemsize == 2:
      words = np.left_shift(one.take(part).view(np.uint16), np.uint32(16), dtype=np.uint32)
      _widen(words, tensor.dtype, made[first : first + many])
    else:
      made[first : first + many] = one.take(part)
  return made.reshape(-1) if len(tensor.shape) == 1 else made


def _fill(descriptor: int, views: list[memoryview], offset: int) -> None:
  """Fills buffers, one behind another, with what stands in a file from `offset` on."""
  views = list(views)
  while views:
    count = os.preadv(descriptor, views, offset)
    if not count:
      raise EOFError('it has become shorter')
    offset += count
    while views and count >= len(views[0]):
      count -= len(views.pop(0))
    if count:
      views[0] = views[0][count:]


def _spaced(dtype: np.dtype, columns: int) -> np.ndarray:
  """A buffer for `_ROWS` rows with gaps between them."""
  gap = _GAP // dtype.itemsize
  return np.empty((_ROWS, columns + gap), dtype)[:, :columns]


def _empty(shape: tuple[int, ...]) -> np.ndarray:
  """A float32 array, aligned."""
  count = int(np.prod(shape)) * 4
  raw = np.empty(count + _ALIGNMENT, np.uint8)
  start = -raw.ctypes.data % _ALIGNMENT
  return raw[start : start + count].view(np.float32).reshape(shape)
