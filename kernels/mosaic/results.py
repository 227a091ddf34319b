"""Results of few tokens: from the registers that have the scaled sums of a tile to memory, codes through shared memory.

Outputs of a gate and those that they multiply take turns in runs of `gates.RUN`, as the two halves of a warp's 16 rows
do, so that each thread has both numbers of a pair and nothing is exchanged.
"""

from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import fragmented_array
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith
from jax.extend.mlir.dialects import memref
from jax.extend.mlir.dialects import scf
import jax.numpy as jnp

from kernels import behind as behind_lib
from kernels import gates
from kernels.mosaic import partial_sums
from kernels.mosaic import threads
from kernels.mosaic import token_arithmetic
from kernels.mosaic import token_codes

_WARP_ROWS = 16
# Bytes that a thread copies at once.
_UNIT = 16


def layout(fold: int, gated: bool):
  """Where a warpgroup has results, [rows / fold, tokens], or behind a gate half as many rows.

  With `fold` runs of inputs in the rows, half of the warps have what the others have.
  """
  if not gated:
    return partial_sums.layout(fold)
  rows = gates.RUN * threads.WARPS // fold
  tiling = fragmented_array.Tiling(((rows, 8), (gates.RUN, 8), (2,)))
  replicated = (fragmented_array.Replicated(fold),) if fold > 1 else ()
  return plgpu.Layout.TILED(tiling, (*replicated, -5), (-3, -2), -1)


def finished(values, behind: behind_lib.Behind, ends, fold: int, dtype):
  """What becomes of scaled sums, as `behind.apply` has it.

  Args:
    values: float32 [rows / fold, tokens] in the layout of `partial_sums`.
    behind, ends: see `token_codes.coded`.
    fold: runs of inputs.
    dtype: of a result that is floating.

  Returns:
    An array in `layout(fold, bool(behind.gate))`, of the dtype or int8.
  """
  values = values.astype(dtype)
  if behind.gate:
    wanted = layout(fold, True)
    values = gates.apply(
        behind.gate, *_halves(values, fold), lambda value, dtype: value.astype(dtype),
        lambda value: token_arithmetic.logistic(value, wanted))
  return token_codes.coded(values, behind, ends)


def _halves(values, fold: int):
  """The rows of a gate, and the others, each [rows / 2, tokens]."""
  (rows, columns), wanted = values.shape, layout(fold, True)
  shape = rows // 2, columns
  kind = plgpu.ShapeDtypeStruct(shape, values.dtype, layout=wanted)

  @plgpu.inline_mgpu(arg_types=(layout(fold, False),), return_type=(kind, kind))
  def split(ctx, array):
    del ctx
    # By tile of 64 rows and by 8 columns, both halves of a warp's 16 rows.
    pairs = array.registers.reshape(-1, 2)
    form = wanted.to_mgpu()
    return tuple(
        mgpu.FragmentedArray(_registers=pairs[:, half].reshape(form.registers_shape(shape)), _layout=form,
                             _is_signed=array.is_signed) for half in range(2))

  return split(values)


def store(values, out, smem, fold: int, gated: bool, n, m) -> None:
  """Stores results from registers.

  Args:
    values: as `finished` returns them.
    out: reference to [M, N] of their dtype; tokens from M on are not stored.
    smem: reference to shared memory of `partial_sums.buffer`, which nobody needs any more, for codes.
    fold: runs of inputs.
    gated: whether there was a gate.
    n, m: first output and first token.
  """
  splat, tokens, columns, coded = plgpu.Layout.WG_SPLAT, out.shape[0], values.shape[1], values.dtype == jnp.int8
  rows, halves = (gates.RUN, 1) if gated else (_WARP_ROWS, 2)  # of a warp, and of a thread in them

  @plgpu.inline_mgpu(arg_types=(layout(fold, gated), plgpu.RefType(), plgpu.RefType(), splat, splat))
  def write(ctx, array, out, smem, *scalars):
    del ctx
    n, m = (scalar.registers.item() for scalar in scalars)
    thread, width = threads.number(), array.shape[0]
    warp, lane = arith.divui(thread, threads.constant(32)), arith.remui(thread, threads.constant(32))
    if coded:
      utils.warpgroup_barrier()  # all have read the sums
    # Of warps that have the same, the first ones store.
    mine = arith.cmpi(arith.CmpIPredicate.ult, warp, threads.constant(threads.WARPS // fold))
    row = arith.addi(arith.muli(warp, threads.constant(rows)), arith.divui(lane, threads.constant(4)))
    column = arith.muli(arith.remui(lane, threads.constant(4)), threads.constant(2))
    for index, register in enumerate(array.registers.flat):
      block, half = divmod(index, halves)
      tile, block = divmod(block, columns // 8)
      for i in range(2):
        token = arith.addi(column, threads.constant(8 * block + i))
        output = arith.addi(row, threads.constant(threads.WARPS * rows * tile + 8 * half))
        number = threads.element(register, i)
        if coded:
          place = arith.addi(arith.muli(token, threads.constant(width)), output)
          _when(mine, lambda: utils.llvm.store(number, _address(smem, place)))
        else:
          token, output = arith.addi(m, token), arith.addi(n, output)
          _when(arith.andi(mine, arith.cmpi(arith.CmpIPredicate.ult, token, threads.constant(tokens))),
                lambda: memref.store(number, out, [threads.index(token), threads.index(output)]))
    if coded:
      utils.warpgroup_barrier()
      _copy(smem, out, array.shape, thread, n, m)

  write(values, out, smem, n, m)


def _copy(smem, out, shape: tuple[int, int], thread, n, m) -> None:
  """Copies codes of [outputs, tokens] from shared memory, where tokens have theirs together, in units of 16 bytes.

  So memory gets whole sectors, of 32 bytes, which several warps have.
  """
  outputs, tokens = shape
  each, kind = outputs // _UNIT, ir.VectorType.get((_UNIT // 4,), threads.i32())
  for first in range(0, tokens * each, threads.WARPGROUP):
    unit = arith.addi(thread, threads.constant(first))
    token, output = arith.divui(unit, threads.constant(each)), arith.remui(unit, threads.constant(each))
    output = arith.addi(n, arith.muli(output, threads.constant(_UNIT)))
    mine = arith.cmpi(arith.CmpIPredicate.ult, unit, threads.constant(tokens * each))
    token = arith.addi(m, token)
    there = arith.cmpi(arith.CmpIPredicate.ult, token, threads.constant(out.type.shape[0]))

    def copy():
      place = arith.addi(arith.muli(token, threads.constant(out.type.shape[1])), output)
      loaded = utils.llvm.load(kind, _address(smem, arith.muli(unit, threads.constant(_UNIT))))
      utils.llvm.store(loaded, _address(out, place))

    _when(arith.andi(mine, there), copy)


def _address(ref, place):
  """The address of a byte behind the first of a reference."""
  return utils.getelementptr(utils.memref_ptr(ref), [place], ir.IntegerType.get_signless(8))


def _when(condition, body) -> None:
  """Emits `body()` for threads of which the condition holds."""
  with ir.InsertionPoint(scf.IfOp(condition).then_block):
    body()
    scf.yield_([])
