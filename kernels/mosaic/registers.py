"""Unpacking of 4-bit weights in the registers of a warpgroup, without exchanges between threads.

Each function loads nothing: it turns an array of bytes in the layout of an 8-bit matrix operand, a 32-bit word a
register, into operands of a matrix instruction. Arithmetic on 8-bit vectors does not exist below, hence words.
The layouts of the bytes are those of `kernels.layouts`, where the tests emulate the same masks.
"""

from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith
import jax.numpy as jnp

from kernels.mosaic import threads

_BYTES = plgpu.Layout.WGMMA_8BIT
# A number for each row of the above, in the threads that hold the row.
_OF_ROWS = plgpu.Layout.WGMMA.reduce(1)


def int4_times_16(packed):
  """Operands of an 8-bit product, 16 times the codes: 3 instructions for 8 weights.

  Args:
    packed: int8 [rows, K / 2] of the layout INT4.

  Returns:
    int8 [rows, K].
  """
  mask = 0xF0F0F0F0

  def words(word):
    return _and(_shift_left(word, 4), mask), _and(word, mask)

  return _unpack(packed, words, jnp.int8)


def int4_as_float8(packed):
  """Operands of an fp8 product, (code + 8) / 512: the number whose e4m3 bit pattern is code + 8.

  Args:
    packed: int8 [rows, K / 2] of the layout INT4.

  Returns:
    float8_e4m3fn [rows, K].
  """
  mask = 0x0F0F0F0F

  def words(word):
    word = arith.xori(word, threads.constant(0x88888888))
    return _and(word, mask), _and(_shift_right(word, 4), mask)

  return _unpack(packed, words, jnp.float8_e4m3fn)


def int4_times(packed, multipliers):
  """Operands of an 8-bit product, codes times integers from 1 to 15: 7 instructions for 8 weights.

  The multiplication of QServe (arXiv:2405.04532) in registers, with the constant by which LiquidGEMM (arXiv:2509.01229)
  keeps the bytes of a word apart: u = code + 8 is 0 to 15, and u * t + (128 - 8 t) = code * t + 128 is 8 to 248, so
  that one multiplication and addition of words does four codes. The sign of a byte then is its highest bit inverted.

  Args:
    packed: int8 [rows, K / 2] of the layout INT4.
    multipliers: a list of int32 [rows], 0 to 15, one for each of equal parts of the K columns, multiples of 16 long.

  Returns:
    int8 [rows, K].
  """
  def constants(multiplier):
    return multiplier, arith.subi(threads.constant(0x80808080), arith.muli(multiplier, threads.constant(0x08080808)))

  def words(word, *prepared):
    found, mask = [], threads.held(0x0F0F0F0F)
    for half, (multiplier, first) in zip((word, _shift_right(word, 4)), prepared):
      # The mask stands before the inversion, so that both are one operation of three operands.
      above = arith.xori(arith.andi(half, mask), threads.constant(0x08080808))
      found.append(arith.xori(arith.addi(arith.muli(above, multiplier), first), threads.constant(0x80808080)))
    return found

  return _unpack(packed, words, jnp.int8, multipliers, constants)


def dint4_times_2(packed, zero_points, per_step: int):
  """Operands of an 8-bit product, twice the integers of dINT codes (kernels.dint): 11 instructions for 8 weights.

  A byte permutation takes 4 codes for places in half a table of 16 bytes. It reads a place from three bits of a code;
  the fourth asks for the sign of the byte that is there, which is 0 in a table of 7-bit integers, so that one of both
  halves' answers is 0. They are added, for which there are other units than for permutations and for an `or`. A shift
  then moves the sign of 7 bits to that of 8.

  Args:
    packed: int8 [rows, K / 2] of the layout DINT4.
    zero_points: a list of int32 [rows], 0 to 15, one for each of equal parts of the K columns, multiples of 16 long.
    per_step: the integer of a step; the largest one, 13 times it at a zero point of 0, is below 64.

  Returns:
    int8 [rows, K].
  """
  ones = 0x01010101

  def table(zero_point):
    """The low 7 bits of the integers of all codes, four in a word."""
    # From 128 on up, so that no byte borrows from the next.
    first = arith.subi(threads.constant(0x80808080), arith.muli(zero_point, threads.constant(per_step * ones)))
    quarters = [arith.addi(first, threads.constant(per_step * (0x03020100 + 4 * quarter * ones)))
                for quarter in range(4)]
    *quarters, last = (_and(quarter, 0x7F7F7F7F) for quarter in quarters)
    return *quarters, arith.ori(_and(last, 0x0000FFFF), threads.constant(0x7F010000))

  def words(word, *tables):
    other = arith.xori(word, threads.constant(0x88888888))
    found = []
    for shift, (first, second, third, fourth) in zip((0, 16), tables):
      places, others = (_shift_right(w, shift) if shift else w for w in (word, other))
      either = arith.addi(utils.prmt(first, second, places), utils.prmt(third, fourth, others))
      found.append(_shift_left(either, 1))
    return found

  return _unpack(packed, words, jnp.int8, zero_points, table)


def _unpack(packed, words, dtype, vectors=(), prepare=None):
  """Splits each word in two; of 64 columns of the result, the low nibbles are the first 32.

  Args:
    packed: int8 [rows, K / 2].
    words: (word, *prepared) -> both words of the result; with `vectors`, `prepared` belongs to these two.
    dtype: of the result.
    vectors: int32 [rows], each for an equal part of the columns of the result.
    prepare: makes of an entry of a vector what `words` wants.
  """
  rows, columns = packed.shape
  width = 2 * columns // 16 // max(1, len(vectors))  # of a part, in blocks of 16 columns

  @plgpu.inline_mgpu(
      arg_types=(_BYTES, *[_OF_ROWS] * len(vectors)),
      return_type=plgpu.ShapeDtypeStruct((rows, 2 * columns), dtype, layout=_BYTES))
  def unpack(ctx, array, *vectors):
    del ctx
    # By tile of 64 rows and by half of the 16 of a warp.
    prepared = [{(row, half): prepare(utils.bitcast(entry, threads.i32()))
                 for (row, _, half, *_), entry in threads.each(vector.registers)} for vector in vectors]
    element = ir.IntegerType.get_signless(8) if dtype == jnp.int8 else ir.Float8E4M3FNType.get()
    vector = ir.VectorType.get((4,), element)
    registers = array.registers.repeat(2, axis=1)  # only the shape matters; axis 1 counts blocks of 16 columns
    for block in range(array.registers.shape[1]):
      run, half = divmod(block, 2)
      for index, register in threads.each(array.registers[:, block]):
        row, *rest = index
        blocks = 4 * run + half, 4 * run + 2 + half
        of_blocks = [prepared[block // width][row, rest[2]] for block in blocks] if prepared else ()
        for target, word in zip(blocks, words(utils.bitcast(register, threads.i32()), *of_blocks)):
          registers[(row, target, *rest)] = utils.bitcast(word, vector)
    return mgpu.FragmentedArray(
        _registers=registers, _layout=array.layout, _is_signed=True if dtype == jnp.int8 else None)

  return unpack(packed, *vectors)


def only(weights, first: int, count: int):
  """Operands of an 8-bit product with zeros in all columns but `count` from `first` on, both multiples of 16."""

  @plgpu.inline_mgpu(
      arg_types=(_BYTES,), return_type=plgpu.ShapeDtypeStruct(weights.shape, weights.dtype, layout=_BYTES))
  def clear(ctx, array):
    del ctx
    registers = array.registers.copy()
    for index, register in threads.each(registers):
      if not first <= 16 * index[1] < first + count:
        registers[index] = utils.bitcast(threads.constant(0), register.type)
    return mgpu.FragmentedArray(_registers=registers, _layout=array.layout, _is_signed=array.is_signed)

  return clear(weights)


def int4_over_64(packed):
  """Operands of a bfloat16 product, the codes over 64: 9 instructions for 8 weights.

  The lowest 8 bits of a bfloat16, under an exponent of zero but for their highest one, count steps of 2^-133, as far as
  subnormal numbers and the first normal ones go. So a nibble code + 8 in either half of them is a number as it is, and
  one multiplication and addition makes it code / 64.

  Args:
    packed: int8 [rows, K / 2] of the layout INT4_WIDE.

  Returns:
    bfloat16 [rows, K] in the layout of a 16-bit operand.
  """
  rows, columns = packed.shape
  layout = plgpu.Layout.WGMMA

  @plgpu.inline_mgpu(
      arg_types=(_BYTES,), return_type=plgpu.ShapeDtypeStruct((rows, 2 * columns), jnp.bfloat16, layout=layout))
  def unpack(ctx, array):
    del ctx
    vector = ir.VectorType.get((2,), ir.BF16Type.get())
    # For the low nibble and the high one: their mask, 8 in it, and what makes 2^-6 of its lowest bit: 2^127, 2^123.
    nibbles = [(threads.held(0x000F000F), threads.constant(0x00080008), 0x7F007F00),
               (threads.held(0x00F000F0), threads.constant(0x00800080), 0x7D007D00)]
    registers = array.registers.repeat(4, axis=1)  # blocks of 16 bytes become 4 blocks of 8 columns
    for block in range(array.registers.shape[1]):
      for (row, *rest), register in threads.each(array.registers[:, block]):
        word = utils.bitcast(register, threads.i32())
        for pair in range(4):
          mask, eight, factor = nibbles[pair % 2]
          shifted = _shift_right(word, 8) if pair > 1 else word
          # ((shifted & mask) ^ eight) in one operation of three operands.
          above = arith.xori(arith.andi(shifted, mask), eight)
          number = threads.multiply_add_pairs(above, factor, 0xBE00BE00)  # less 8 / 64
          registers[(row, 4 * block + pair, *rest)] = utils.bitcast(number, vector)
    return mgpu.FragmentedArray(_registers=registers, _layout=layout.to_mgpu(), _is_signed=None)

  return unpack(packed)


def _and(word, mask: int):
  return arith.andi(word, threads.constant(mask))


def _shift_left(word, bits: int):
  return arith.shli(word, threads.constant(bits))


def _shift_right(word, bits: int):
  return arith.shrui(word, threads.constant(bits))
