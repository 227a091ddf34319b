"""Products of few tokens by instructions of single warps (mma.sync), whose time grows with the tokens.

An instruction of a warpgroup (wgmma) takes about as long for 8 tokens as for 64; of these, a warp's own take as long as
they have tokens. A warp multiplies 16 rows of weights, from its registers, by 8 tokens at a time, which it loads from
shared memory (ldmatrix). Weights and sums are where an instruction of a warpgroup has them. With `fold` runs of the
inputs in the rows, each warp multiplies the tokens of its own run.
"""

import itertools

from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith
from jax.extend.mlir.dialects import vector
import jax.numpy as jnp

from kernels.mosaic import threads
from kernels.mosaic import tiles

# Tokens of one instruction, and bytes of its inputs: 32 numbers of 8 bits or 16 of 16.
TOKENS, _BYTES = 8, 32
# Bytes of a token that a warp loads at once, for two instructions.
_LOADED = 64
# An instruction waits this many others long for the sums of the one before.
_CHAINS = 4

_INSTRUCTIONS = {
    jnp.dtype(jnp.int8): ('m16n8k32', 's32.s8.s8.s32'), jnp.dtype(jnp.bfloat16): ('m16n8k16', 'f32.bf16.bf16.f32'),
    jnp.dtype(jnp.float8_e4m3fn): ('m16n8k32', 'f32.e4m3.e4m3.f32')}


def chains(rows: int, tokens: int) -> int:
  """How many sums of the same should be made in turn, so that none waits for the instruction before."""
  return max(1, _CHAINS * TOKENS * 64 // (rows * tokens))


def multiply(sums, weights, x, first: int, fold: int):
  """Adds the product of some inputs.

  Args:
    sums: a list of int32 or float32 [rows, tokens] in the layout of an accumulator, rows a multiple of 64, tokens of 8,
      whose total is wanted.
    weights: [rows, columns] in the layout of an operand of 8 or 16 bits, columns of a multiple of 32 bytes.
    x: reference to a slot of shared memory of `tiles.smem`, [fold * tokens, inputs] of the same dtype.
    first: the first of these inputs that belongs to the weights, a multiple of 32 bytes.
    fold: runs of the inputs in the rows.

  Returns:
    The list of sums.
  """
  size, layout = jnp.dtype(x.dtype).itemsize, plgpu.Layout.WGMMA
  operand = layout if size > 1 else plgpu.Layout.WGMMA_8BIT
  (rows, inputs), (_, columns), tokens = x.shape, weights.shape, sums[0].shape[1]
  swizzle, dtype = tiles.swizzle(inputs, x.dtype), x.dtype

  @plgpu.inline_mgpu(
      arg_types=(operand, plgpu.RefType(tiles.transforms(inputs, x.dtype)), *[layout] * len(sums)),
      return_type=[plgpu.ShapeDtypeStruct(array.shape, array.dtype, layout=layout) for array in sums])
  def run(ctx, weights, x, *sums):
    del ctx
    # By tile of 64 rows, 8 tokens or 16 bytes of the inputs, and half of the 16 rows.
    results = [array.registers.reshape(len(array.registers), -1, 2).copy() for array in sums]
    operands = weights.registers.reshape(len(weights.registers), -1, 2)
    base = _address(x, swizzle, rows // fold * inputs * size, fold)
    blocks = range(tokens // TOKENS)
    for i in range(columns * size // _BYTES):
      chunk, half = divmod((first * size + i * _BYTES) // _BYTES, _LOADED // _BYTES)
      if not half or not i:
        loaded = [_load(base, block * TOKENS * inputs * size, chunk * _LOADED, swizzle) for block in blocks]
      # Neighbors here have sums of their own, so that none waits for another.
      for tile, block in itertools.product(range(len(operands)), blocks):
        words = [utils.bitcast(register, threads.i32()) for register in operands[tile, 2 * i : 2 * i + 2].flat]
        pair = results[i % len(results)][tile, block]
        before = threads.elements(pair)
        after = instruction(dtype, words + loaded[block][2 * half : 2 * half + 2], before)
        pair[:] = [vector.from_elements(pair[0].type, numbers) for numbers in (after[:2], after[2:])]
    return [mgpu.FragmentedArray(
        _registers=pairs.reshape(array.registers.shape), _layout=array.layout, _is_signed=array.is_signed)
            for pairs, array in zip(results, sums)]

  return run(weights, x, *sums)


def _address(x, swizzle: int, run: int, fold: int):
  """Where a lane's row of 16 bytes lies, of four matrices of 8 tokens, where those of a run are `run` bytes."""
  i32 = threads.i32()
  lane = arith.remui(utils.thread_idx(), threads.constant(threads.LANES))
  row, matrix = arith.andi(lane, threads.constant(7)), arith.shrui(lane, threads.constant(3))
  per_row = swizzle // 16
  unit = arith.xori(arith.remui(matrix, threads.constant(per_row)),
                    arith.shrui(row, threads.constant((8 // per_row).bit_length() - 1)))
  offset = arith.addi(arith.muli(row, threads.constant(swizzle)), arith.muli(unit, threads.constant(16)))
  tile = arith.divui(matrix, threads.constant(per_row))
  offset = arith.addi(offset, arith.muli(tile, threads.constant(8 * swizzle)))
  mine = arith.divui(threads.number(), threads.constant(threads.WARPGROUP // fold))
  offset = arith.addi(offset, arith.muli(mine, threads.constant(run)))
  return arith.addi(utils.llvm.ptrtoint(i32, utils.memref_ptr(x)), offset)


def _load(base, block: int, column: int, swizzle: int):
  """Four words of a thread: the operands of two instructions, of 64 bytes of 8 tokens."""
  within = column % swizzle
  address = arith.addi(base, threads.constant(block + column // swizzle * 8 * swizzle))
  if within:  # the other half of a row of 128 bytes
    address = arith.xori(address, threads.constant(within))
  return threads.load_matrices(address)


def instruction(dtype, words, before):
  """The instruction: 16 rows of an operand, 4 words of a lane, by 8 columns, 2 words, added to 4 sums."""
  shape, kinds = _INSTRUCTIONS[jnp.dtype(dtype)]
  kind = before[0].type
  letter = 'r' if isinstance(kind, ir.IntegerType) else 'f'
  found = utils.llvm.inline_asm(
      utils.llvm.StructType.get_literal([kind] * 4), [*words, *before],
      f'mma.sync.aligned.{shape}.row.col.{kinds} {{$0, $1, $2, $3}}, {{$4, $5, $6, $7}}, {{$8, $9}}, '
      '{$10, $11, $12, $13};', ','.join([f'={letter}'] * 4 + ['r'] * 6 + [letter] * 4))
  return [utils.llvm.extractvalue(kind, found, [i]) for i in range(4)]
