"""What is said of single threads and their registers, below arrays of Mosaic."""

from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith
from jax.extend.mlir.dialects import vector
import jax.numpy as jnp

LANES, WARPS, WARPGROUP = 32, 4, 128


def i32():
  """The type of a word."""
  return ir.IntegerType.get_signless(32)


def constant(value: int):
  """A word, given as a signed number or by its bits."""
  return mgpu.c(value - (1 << 32) if value >> 31 > 0 else value, i32())


def zero(number):
  """A word of zeros that is none to a compiler, which knows bits of a sum, but not that a product of neighbors is even.

  So it cannot do without what the word masks, or a loop whose count it belongs to.
  """
  return arith.andi(arith.muli(number, arith.addi(number, constant(1))), constant(1))


def held(value: int):
  """The same in a register. To a compiler it is no constant, which it would move into a register before each use.

  A product, since a sum, of which it knows bits, splits operations of three operands.
  """
  return arith.muli(constant(value), arith.addi(constant(1), zero(utils.thread_idx())))


def number():
  """The number of a thread in its warpgroup, a word."""
  return arith.remui(utils.thread_idx(), constant(WARPGROUP))


def index(word):
  """A word as an index into memory."""
  return arith.index_cast(ir.IndexType.get(), word)


def element(register, place: int):
  """An element of a vector."""
  return vector.extract(register, dynamic_position=[], static_position=ir.DenseI64ArrayAttr.get([place]))


def elements(registers):
  """All elements of vectors, one after another."""
  return [element(register, i) for register in registers for i in range(ir.VectorType(register.type).shape[0])]


def each(registers):
  """[(index, register)] of an array of registers."""
  return [(index, registers[index]) for index in _indices(registers.shape)]


def _indices(shape):
  if not shape:
    return [()]
  return [(i, *rest) for i in range(shape[0]) for rest in _indices(shape[1:])]


def load_matrices(address, transposed: bool = False):
  """Four words of a thread, one of each of four matrices of 8 rows of 16 bytes (ldmatrix).

  Args:
    address: in shared memory, a word; that of lane l is where row l % 8 of matrix l / 8 begins.
    transposed: whether units of 16 bits are transposed: then lane l has the numbers l / 4 of rows 2 (l % 4) and the one
      behind it, and else numbers 2 (l % 4) and the one behind it of row l / 4.
  """
  struct = utils.llvm.StructType.get_literal([i32()] * 4)
  found = utils.llvm.inline_asm(
      struct, [address], f'ldmatrix.sync.aligned.m8n8.x4{".trans" * transposed}.shared.b16 {{$0, $1, $2, $3}}, [$4];',
      '=r,=r,=r,=r,r', has_side_effects=True)
  return [utils.llvm.extractvalue(i32(), found, [i]) for i in range(4)]


def transposed(word):
  """The transpose of 8 by 8 units of 16 bits, of which lane l has 2 (l % 4) and the one behind it of row l / 4."""
  return utils.llvm.inline_asm(i32(), [word], 'movmatrix.sync.aligned.m8n8.trans.b16 $0, $1;', '=r,r')


def multiply_add_pairs(word, factor: int, addend: int):
  """A word of two bfloat16 times a pair of them plus another, rounded once; subnormal numbers count."""
  return utils.llvm.inline_asm(
      i32(), [word, constant(factor), constant(addend)], 'fma.rn.bf16x2 $0, $1, $2, $3;', '=r,r,r,r')


def unknown(count: int, index):
  """The scalar `count`, for any index, which a compiler does not know: it leaves a loop as it is."""
  splat = plgpu.Layout.WG_SPLAT

  @plgpu.inline_mgpu(arg_types=(splat,), return_type=plgpu.ShapeDtypeStruct((), jnp.int32, layout=splat))
  def find(ctx, index):
    del ctx
    found = arith.muli(constant(count), arith.addi(constant(1), zero(index.registers.item())))
    return mgpu.FragmentedArray.splat(found, (), is_signed=True)

  return find(index)
