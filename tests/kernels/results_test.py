"""Results on their way from registers to memory, by an emulation of the instructions that store them."""

import contextlib
import types

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from kernels.mosaic import results
from tests import emulation


def _registers(values, layout):
  """[registers] of [128, 2] for an array in a layout of `results`."""
  tiling, shape = layout.tiling, values.shape
  strides = np.array(values.strides) // values.itemsize
  strides = [values.itemsize * int(stride) for stride in tiling.tile_strides(tuple(map(int, strides)))]
  tiled = np.lib.stride_tricks.as_strided(values, tiling.tile_shape(shape), strides)
  copies = [dim for dim in layout.warp_dims if not isinstance(dim, int)]
  warps, lanes = [dim for dim in layout.warp_dims if isinstance(dim, int)], list(layout.lane_dims)
  rest = [axis - tiled.ndim for axis in range(tiled.ndim)
          if axis - tiled.ndim not in (*warps, *lanes, layout.vector_dim)]
  found = tiled.transpose([axis % tiled.ndim for axis in (*rest, *warps, *lanes, layout.vector_dim)])
  found = found.reshape(-1, 128 // (copies[0].times if copies else 1), 2)
  return [np.tile(register, (copies[0].times if copies else 1, 1)) for register in found]


@contextlib.contextmanager
def _memory(size):
  """(bytes that are stored, how often each is)."""
  memory, times, masks = np.full(size, 255, np.uint8), np.zeros(size, int), [np.ones(128, bool)]

  def when(condition, body):
    masks.append(masks[-1] & condition)
    body()
    masks.pop()

  def store(numbers, place):
    rows = np.ascontiguousarray(numbers).view(np.uint8).reshape(128, -1)
    for thread in np.flatnonzero(masks[-1]):
      where = slice(int(place[thread]), int(place[thread]) + rows.shape[1])
      memory[where] = rows[thread]
      times[where] += 1

  llvm = types.SimpleNamespace(store=store)
  machine = types.SimpleNamespace(**vars(emulation.UTILS), llvm=llvm, bytewidth=lambda kind: 2)
  vectors = types.SimpleNamespace(from_elements=lambda kind, elements: np.stack(elements, -1))
  with emulation.emulated(results, utils=machine, vector=vectors, _when=when, _address=lambda out, place: place):
    yield memory, times


class StoreTest(parameterized.TestCase):

  @parameterized.product(
      shape=[(1, 8), (5, 8), (16, 16), (24, 32)], rows=[(64, 1), (64, 2), (128, 1)], gated=[False, True], block=[0, 1])
  def test_every_number_is_stored_once_in_its_place(self, shape, rows, gated, block):
    (tokens, tile_m), (tile_n, fold) = shape, rows
    rows = tile_n // fold // (2 if gated else 1)
    values = np.arange(1, rows * tile_m + 1, dtype=np.uint16).reshape(rows, tile_m)
    registers = _registers(values, results.layout(fold, gated).to_mgpu())
    array = types.SimpleNamespace(registers=types.SimpleNamespace(flat=registers), shape=values.shape)
    out = types.SimpleNamespace(type=types.SimpleNamespace(shape=(tokens, 2 * rows), element_type=None))
    with _memory(2 * tokens * 2 * rows) as (memory, times):
      part = results._Part.of(fold, gated, np.uint32(block * rows), np.uint32(0))
      results._store_pairs(array, part, out)
    stored = memory.view(np.uint16).reshape(tokens, 2, rows)
    np.testing.assert_array_equal(stored[:, block], values[:, :tokens].T)
    counts = times.reshape(tokens, 2, 2 * rows)
    np.testing.assert_array_equal(counts[:, block], 1)
    np.testing.assert_array_equal(counts[:, 1 - block], 0)


if __name__ == '__main__':
  absltest.main()
