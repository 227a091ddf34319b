"""Operands of 16-bit products made of a cache's codes of 8 bits, in the registers of a warpgroup.

Of a word of four codes those at even places become one pair of numbers and those at odd places another, without
exchanges between threads. A matrix instruction wants what belongs to neighbors instead: of keys, numbers of neighboring
features in a pair; of values, neighboring slots. So keys take their features, in turns of 16, in another order, and
values, whose slots `ldmatrix` brings together, have their features in that order as well: row r of 8 and row r + 8
stand for features 2 r and 2 r + 1. What meets them is loaded and stored in the same order (`load`, `store`).
"""

import functools
import operator

from jax import lax
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith
from jax.extend.mlir.dialects import vector
import jax.numpy as jnp

from kernels.mosaic import column_numbers
from kernels.mosaic import mma
from kernels.mosaic import threads
from kernels.mosaic import tiles
from kernels.mosaic import token_codes

# Operands are the codes over this.
_FACTOR = 64.0
_OPERAND, _BYTES = plgpu.Layout.WGMMA, plgpu.Layout.WGMMA_8BIT
_OF_ROWS = _OPERAND.reduce(1)
# Features of a tile of rows, slots of a matrix that `ldmatrix` loads, bytes of its rows, and those of a slot.
_ROWS, _SLOTS, _UNIT, _SLOT = 64, 8, 16, 128


def load(ref):
  """Numbers of features as those of the rows that stand for them: an array of a reference, [a multiple of 64]."""
  shape, layout = ref.shape, _OF_ROWS.to_mgpu()

  @plgpu.inline_mgpu(
      arg_types=(plgpu.RefType(),), return_type=plgpu.ShapeDtypeStruct(shape, ref.dtype, layout=_OF_ROWS))
  def read(ctx, ref):
    del ctx
    element = ref.type.element_type
    pairs = [vector.load(ir.VectorType.get((2,), element), ref, [place]) for place in _places(shape)]
    registers = mgpu.FragmentedArray.splat(utils.c(0, element), shape, layout).registers.copy()
    one = ir.VectorType.get((1,), element)
    registers.flat = [vector.from_elements(one, [threads.element(pair, i)]) for pair in pairs for i in range(2)]
    return mgpu.FragmentedArray(_registers=registers, _layout=layout, _is_signed=None)

  return read(ref)


def store(array, ref) -> None:
  """Stores numbers of rows, in the layout that these have in an accumulator, as those of features."""

  @plgpu.inline_mgpu(arg_types=(_OF_ROWS, plgpu.RefType()))
  def write(ctx, array, ref):
    del ctx
    numbers = [threads.element(register, 0) for register in array.registers.flat]
    kind = ir.VectorType.get((2,), ref.type.element_type)
    for i, place in enumerate(_places(array.shape)):
      vector.store(vector.from_elements(kind, numbers[2 * i : 2 * i + 2]), ref, [place])

  write(array, ref)


def token(key, value, dtype, scratch):
  """Quantizes a token's key and value: of each (parts as the cache will have them, their codes, the scale).

  Args:
    key, value: lists of arrays of features.
    dtype: of their numbers.
    scratch: see `column_numbers`.
  """
  heads = [[part.astype(jnp.float32) for part in parts] for parts in (key, value)]
  tops = column_numbers.magnitudes(*(functools.reduce(jnp.maximum, map(jnp.abs, parts)) for parts in heads), scratch)
  return [_coded(parts, top, dtype) for parts, top in zip(heads, tops)]


def _coded(parts, top, dtype):
  found = [token_codes.symmetric(part, 8, top) for part in parts]
  codes, scale = [codes - bias for codes, bias, _ in found], found[0][-1]
  return [(scale * c.astype(jnp.float32)).astype(dtype) for c in codes], [c.astype(jnp.int8) for c in codes], scale


def _places(shape):
  """Where the two features lie that a thread has of each 64 rows: lanes of a row have the same."""
  thread = threads.number()
  warp, lane = arith.shrui(thread, threads.constant(5)), arith.andi(thread, threads.constant(threads.LANES - 1))
  first = arith.addi(arith.muli(warp, threads.constant(16)),
                     arith.muli(arith.shrui(lane, threads.constant(2)), threads.constant(2)))
  return [threads.index(arith.addi(first, threads.constant(_ROWS * tile))) for tile in range(shape[0] // _ROWS)]


def by_keys(total, tile, queries):
  """Adds the products of a tile of keys' codes, over `_FACTOR`, with queries.

  Args:
    total: float32 [slots, 8] in the layout of an accumulator.
    tile: reference to int8 [slots, 128], a slot of `tiles.smem`; slots a multiple of 64.
    queries: reference to bfloat16 [8, 128] of `tiles.smem`, in the order of `load`.
  """
  return _multiplied(total, _of_keys(tile[...]), queries)


def by_values(total, tile, weights):
  """Adds the products of a tile of values' codes, over `_FACTOR`, with weights.

  Args:
    total: float32 [128, 8] in the layout of an accumulator, rows in the order of `load`.
    tile: as above.
    weights: reference to bfloat16 [8, slots] of `tiles.smem`.
  """
  return _multiplied(total, _of_values(tile), weights)


def _multiplied(total, operand, x):
  """By instructions of single warps, which for 8 columns take less time than those of a warpgroup."""
  zeros = plgpu.layout_cast(jnp.zeros(total.shape, jnp.float32), _OPERAND)
  chains = mma.chains(*total.shape)
  return functools.reduce(operator.add, mma.multiply([total] + [zeros] * (chains - 1), operand, x, 0, 1))


def _of_keys(codes):
  """The operand of a tile of keys, bfloat16 [slots, features], of codes in the layout of an 8-bit operand."""

  @plgpu.inline_mgpu(
      arg_types=(_BYTES,), return_type=plgpu.ShapeDtypeStruct(codes.shape, jnp.bfloat16, layout=_OPERAND))
  def convert(ctx, array):
    del ctx
    registers = array.registers.repeat(2, axis=1)  # blocks of 16 bytes become two of 8 numbers
    for block in range(array.registers.shape[1]):
      for (row, *rest), register in threads.each(array.registers[:, block]):
        for half, pair in enumerate(_pairs(utils.bitcast(register, threads.i32()))):
          registers[(row, 2 * block + half, *rest)] = pair
    return mgpu.FragmentedArray(_registers=registers, _layout=_OPERAND.to_mgpu(), _is_signed=None)

  return convert(codes)


def _of_values(tile):
  """The operand of a tile of values, bfloat16 [features, slots], of a reference to codes."""
  slots, features = tile.shape

  @plgpu.inline_mgpu(
      arg_types=(plgpu.RefType(tiles.transforms(features, jnp.int8)),),
      return_type=plgpu.ShapeDtypeStruct((features, slots), jnp.bfloat16, layout=_OPERAND))
  def convert(ctx, codes):
    del ctx
    addresses = [_address(codes, tile) for tile in range(features // _ROWS)]
    found = {}
    for tile, address in enumerate(addresses):
      for first in range(0, slots, 4 * _SLOTS):
        words = threads.load_matrices(arith.addi(address, threads.constant(first * features)), transposed=True)
        found |= {(tile, first // _SLOTS + matrix): _pairs(word) for matrix, word in enumerate(words)}
    zeros = mgpu.FragmentedArray.splat(mgpu.c(0.0, ir.BF16Type.get()), (features, slots), _OPERAND.to_mgpu())
    registers = zeros.registers.copy()
    for (tile, block, _, _, half, *rest), _ in threads.each(registers):
      registers[(tile, block, 0, 0, half, *rest)] = found[tile, block][half]
    return mgpu.FragmentedArray(_registers=registers, _layout=zeros.layout, _is_signed=None)

  return convert(tile)


def factor(scales, shape):
  """What the operand of each slot has to be multiplied by, along the slots of `shape`, float32.

  Args:
    scales: reference to those of the codes, float32 [slots].
    shape: [slots, columns].
  """
  return lax.broadcast_in_dim(_FACTOR * tiles.load(scales, _OF_ROWS, optimized=False), shape, [0])


def _address(codes, tile: int):
  """Where a lane's row of 16 bytes lies: of the features that are its warp's, the first 32 slots, 8 a matrix."""
  lane = arith.remui(utils.thread_idx(), threads.constant(threads.LANES))
  warp = arith.divui(threads.number(), threads.constant(threads.LANES))
  unit = arith.addi(warp, threads.constant(tile * _ROWS // _UNIT))
  unit = arith.xori(unit, arith.andi(lane, threads.constant(_SLOTS - 1)))  # as copies swizzle such rows
  offset = arith.addi(arith.muli(lane, threads.constant(_SLOT)), arith.muli(unit, threads.constant(_UNIT)))
  return arith.addi(utils.llvm.ptrtoint(threads.i32(), utils.memref_ptr(codes)), offset)


def _pairs(word):
  """Two pairs of bfloat16, of the codes at even and at odd places of a word: 5 instructions for 4 codes.

  As in `registers.int4_over_64`, the low 8 bits of a bfloat16 count steps of 2^-133.
  """
  pair = ir.VectorType.get((2,), ir.BF16Type.get())
  mask, sign = threads.held(0x00FF00FF), threads.constant(0x00800080)
  found = []
  for shifted in (word, arith.shrui(word, threads.constant(8))):
    above = arith.xori(arith.andi(shifted, mask), sign)  # code + 128
    number = threads.multiply_add_pairs(above, 0x7F007F00, 0xC000C000)  # by 2^127, less 128 / 64
    found.append(utils.bitcast(number, pair))
  return found

