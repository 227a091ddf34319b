"""Results of few tokens: from the registers that have the scaled sums of a tile to memory, codes through shared memory.

Outputs of a gate and those that they multiply take turns in runs of `gates.RUN`, as the two halves of a warp's 16 rows
do, so that each thread has both numbers of a pair and nothing is exchanged.
"""

from typing import Any, NamedTuple

from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import fragmented_array
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith
from jax.extend.mlir.dialects import memref
from jax.extend.mlir.dialects import scf
from jax.extend.mlir.dialects import vector
import jax.numpy as jnp

from kernels import behind as behind_lib
from kernels import gates
from kernels.mosaic import partial_sums
from kernels.mosaic import threads
from kernels.mosaic import token_arithmetic
from kernels.mosaic import token_codes

# Tokens from which on results are transposed in registers before they are stored.
_TRANSPOSED = 8
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
    smem: reference to shared memory of `partial_sums.buffer`, which nobody needs any more, for codes; else unused.
    fold: runs of inputs.
    gated: whether there was a gate.
    n, m: first output and first token.
  """
  splat, wide = plgpu.Layout.WG_SPLAT, jnp.dtype(values.dtype).itemsize > 2
  references, emit = [out], _store_pairs
  if values.dtype == jnp.int8:
    references, emit = [out, smem], _store_codes
  elif wide or fold > 1 or out.shape[0] < _TRANSPOSED:
    emit = _store_numbers  # a transpose takes more than it saves for few tokens, or outputs, as blocks of two runs have

  @plgpu.inline_mgpu(arg_types=(layout(fold, gated), *[plgpu.RefType()] * len(references), splat, splat))
  def write(ctx, array, *rest):
    del ctx
    *references, n, m = rest
    emit(array, _Part.of(fold, gated, n.registers.item(), m.registers.item()), *references)

  write(values, *references, n, m)


class _Part(NamedTuple):
  """What a thread has of a tile of results.

  Attributes:
    warp, lane: of its warpgroup, and in its warp.
    stores: whether it does: of warps that have the same, the first ones.
    rows: outputs of a warp that lie together.
    halves: of them, that a thread has an output of.
    n, m: the tile's first output and first token.
  """

  warp: Any
  lane: Any
  stores: Any
  rows: int
  halves: int
  n: Any
  m: Any

  @classmethod
  def of(cls, fold: int, gated: bool, n, m) -> '_Part':
    """That of the thread which runs this."""
    thread = threads.number()
    warp, lane = (of(thread, threads.constant(threads.LANES)) for of in (arith.divui, arith.remui))
    stores = arith.cmpi(arith.CmpIPredicate.ult, warp, threads.constant(threads.WARPS // fold))
    return cls(warp, lane, stores, *((gates.RUN, 1) if gated else (2 * gates.RUN, 2)), n, m)

  def blocks(self, array):
    """[(first row of the tile of a warp, first token, registers)] by blocks of 8 tokens: one register for each half."""
    of_tile = array.shape[1] // 8
    registers = list(array.registers.flat)
    found = [registers[first : first + self.halves] for first in range(0, len(registers), self.halves)]
    return [(threads.WARPS * self.rows * (i // of_tile), 8 * (i % of_tile), pair) for i, pair in enumerate(found)]

  def numbers(self, array):
    """[(number, token, output)] of all its numbers, as the tile counts them."""
    row = arith.addi(arith.muli(self.warp, threads.constant(self.rows)), arith.divui(self.lane, threads.constant(4)))
    column = arith.muli(arith.remui(self.lane, threads.constant(4)), threads.constant(2))
    return [(threads.element(register, i), arith.addi(column, threads.constant(token + i)),
             arith.addi(row, threads.constant(output + gates.RUN * half)))
            for output, token, pair in self.blocks(array) for half, register in enumerate(pair) for i in range(2)]


def _store_numbers(array, part: _Part, out) -> None:
  """Stores each number where it belongs."""
  for number, token, output in part.numbers(array):
    token, output = arith.addi(part.m, token), arith.addi(part.n, output)
    there = arith.cmpi(arith.CmpIPredicate.ult, token, threads.constant(out.type.shape[0]))
    _when(arith.andi(part.stores, there),
          lambda: memref.store(number, out, [threads.index(token), threads.index(output)]))


def _store_pairs(array, part: _Part, out) -> None:
  """Stores numbers of 16 bits behind a transpose, by which a thread has outputs that are next to each other.

  Where it has both halves of a warp's rows, neighbors exchange so that each has four outputs of one half: the warp
  stores a whole sector of each of 8 tokens.
  """
  bit = lambda value: arith.andi(part.lane, threads.constant(value))
  scaled = lambda word, factor: arith.muli(word, threads.constant(factor))
  even = arith.cmpi(arith.CmpIPredicate.eq, bit(1), threads.constant(0))
  column = arith.addi(scaled(bit(1), 8), scaled(bit(2), 2)) if part.halves > 1 else scaled(bit(3), 2)
  column = arith.addi(arith.addi(part.n, column), scaled(part.warp, part.rows))
  kind = ir.VectorType.get((part.halves,), threads.i32())
  for output, token, pair in part.blocks(array):
    words = [threads.transposed(utils.bitcast(register, threads.i32())) for register in pair]
    if part.halves > 1:
      other = utils.shfl_bfly(arith.select(even, words[1], words[0]), 1)
      words = [arith.select(even, words[0], other), arith.select(even, other, words[1])]
    token = arith.addi(part.m, arith.addi(arith.divui(part.lane, threads.constant(4)), threads.constant(token)))
    there = arith.cmpi(arith.CmpIPredicate.ult, token, threads.constant(out.type.shape[0]))
    place = _place(out, token, arith.addi(column, threads.constant(output)))
    _when(arith.andi(part.stores, there), lambda: utils.llvm.store(vector.from_elements(kind, words), place))


def _store_codes(array, part: _Part, out, smem) -> None:
  """Stores codes through shared memory."""
  outputs = array.shape[0]
  utils.warpgroup_barrier()  # all have read the sums
  for number, token, output in part.numbers(array):
    place = arith.addi(arith.muli(token, threads.constant(outputs)), output)
    _when(part.stores, lambda: utils.llvm.store(number, _address(smem, place)))
  utils.warpgroup_barrier()
  _copy(smem, out, array.shape, threads.number(), part.n, part.m)


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
      loaded = utils.llvm.load(kind, _address(smem, arith.muli(unit, threads.constant(_UNIT))))
      utils.llvm.store(loaded, _place(out, token, output))

    _when(arith.andi(mine, there), copy)


def _place(out, token, output):
  """The address of a number in memory, which may have more than 2 GB."""
  i64 = ir.IntegerType.get_signless(64)
  token, output = (arith.extui(i64, word) for word in (token, output))
  size = utils.bytewidth(out.type.element_type)
  place = arith.addi(arith.muli(token, utils.c(out.type.shape[1], i64)), output)
  return _address(out, arith.muli(place, utils.c(size, i64)))


def _address(ref, place):
  """The address of a byte behind the first of a reference."""
  return utils.getelementptr(utils.memref_ptr(ref), [place], ir.IntegerType.get_signless(8))


def _when(condition, body) -> None:
  """Emits `body()` for threads of which the condition holds."""
  with ir.InsertionPoint(scf.IfOp(condition).then_block):
    body()
    scf.yield_([])
