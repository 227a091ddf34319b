"""Arithmetic on a token that a warpgroup holds in registers: conversions, and numbers that belong to all its features.

A number for the whole token is made in the registers of a thread, by exchanges in a warp, and through shared memory,
which costs the warps one barrier; what is needed at the same time goes together.
"""

import functools

from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith
from jax.extend.mlir.dialects import math
from jax.extend.mlir.dialects import memref
from jax.extend.mlir.dialects import vector
import jax.numpy as jnp

from kernels.mosaic import threads
from kernels.mosaic import token_registers

_LOG2_E = 1.4426950408889634
_PACKED = {jnp.dtype(jnp.bfloat16): 'bf16x2', jnp.dtype(jnp.float16): 'f16x2'}
# By kind of number: how words of lanes are combined, and those of warps.
_KINDS = {'sum': (utils.ReductionKind.ADD, arith.addi), 'max': (utils.ReductionKind.MAX, arith.maxsi),
          'min': (utils.ReductionKind.MIN, arith.minsi), 'magnitude': (utils.ReductionKind.MAX, arith.maxsi)}
# By kind of extreme: how numbers of a thread are. That of magnitudes has any sign.
_EXTREMES = {'max': 'max.NaN', 'min': 'min.NaN', 'magnitude': 'max.NaN.xorsign.abs'}


def narrow(values, dtype, places: token_registers.Places):
  """float32 [K] rounded to a dtype of 16 bits, two at a time, for which there is a faster instruction than for one."""
  if jnp.dtype(dtype) not in _PACKED:
    return values.astype(dtype)

  @plgpu.inline_mgpu(
      arg_types=(places.layout(),), return_type=plgpu.ShapeDtypeStruct(values.shape, dtype, layout=places.layout()))
  def convert(ctx, array):
    del ctx
    registers = array.registers.copy()
    vectors = []
    for register in array.registers.flat:
      words = [rounded(dtype, threads.element(register, i), threads.element(register, i + 1))
               for i in range(0, places.width, 2)]
      joined = vector.from_elements(ir.VectorType.get((len(words),), threads.i32()), words)
      vectors.append(utils.bitcast(joined, ir.VectorType.get((places.width,), utils.dtype_to_ir_type(dtype))))
    registers.flat = vectors
    return mgpu.FragmentedArray(_registers=registers, _layout=array.layout, _is_signed=None)

  return convert(values)


def widened(values, places: token_registers.Places):
  """float32 of [K]; of a word of two bfloat16, each takes one instruction."""
  if values.dtype != jnp.bfloat16:
    return values.astype(jnp.float32)
  layout = places.layout()

  @plgpu.inline_mgpu(
      arg_types=(layout,), return_type=plgpu.ShapeDtypeStruct(values.shape, jnp.float32, layout=layout))
  def convert(ctx, array):
    del ctx
    registers = array.registers.copy()
    words = ir.VectorType.get((places.width // 2,), threads.i32())
    kind = ir.VectorType.get((places.width,), ir.F32Type.get())
    vectors = []
    for register in array.registers.flat:
      pairs = [threads.element(utils.bitcast(register, words), i) for i in range(places.width // 2)]
      bits = [half for pair in pairs for half in (arith.shli(pair, threads.constant(16)),
                                                  arith.andi(pair, threads.constant(0xFFFF0000)))]
      vectors.append(vector.from_elements(kind, [utils.bitcast(word, ir.F32Type.get()) for word in bits]))
    registers.flat = vectors
    return mgpu.FragmentedArray(_registers=registers, _layout=array.layout, _is_signed=None)

  return convert(values)


def rounded(dtype, first, second):
  """A word of two float32 numbers rounded to a dtype of 16 bits, the first in the lower half."""
  return _asm(f'cvt.rn.{_PACKED[jnp.dtype(dtype)]}.f32', second, first)


def logistic(values, layout):
  """1 / (1 + exp(-x)) of float32, to a few units in the last place: two instructions of the special functions.

  A division rounded to the last bit takes ten times as long as all of this.

  Args:
    values: in `layout`.
    layout: of registers, with several numbers of a thread next to each other.
  """
  @plgpu.inline_mgpu(
      arg_types=(layout,), return_type=plgpu.ShapeDtypeStruct(values.shape, jnp.float32, layout=layout))
  def compute(ctx, array):
    del ctx
    registers = array.registers.copy()
    number = lambda value: mgpu.c(value, ir.F32Type.get())
    registers.flat = [
        vector.from_elements(register.type, [
            _special('rcp', arith.addf(number(1.0), _special('ex2', arith.mulf(
                number(-_LOG2_E), threads.element(register, i))))) for i in range(register.type.shape[0])])
        for register in array.registers.flat]
    return mgpu.FragmentedArray(_registers=registers, _layout=array.layout, _is_signed=None)

  return compute(values)


def total(values, power: int, places: token_registers.Places, scratch):
  """The sum over a token of its numbers, or of their squares, float32.

  Args:
    values: float32 [K].
    power: 1 or 2.
    places: where the features lie.
    scratch: float32 [1, 4] of shared memory that nobody else uses.
  """
  @plgpu.inline_mgpu(
      arg_types=(places.layout(), plgpu.RefType()), return_type=plgpu.ShapeDtypeStruct((), jnp.float32, layout=None))
  def add(ctx, array, scratch):
    del ctx
    # A sum for each load, since they are added up at the same time.
    sums = [_sum_of_powers(threads.elements([register]), power) for register in array.registers.flat]
    number = functools.reduce(arith.addf, sums)
    for distance in (1, 2, 4, 8, 16):
      number = arith.addf(number, utils.shfl_bfly(number, distance))
    return _scalar(functools.reduce(arith.addf, _of_warps([number], scratch)[0]))

  return add(values, scratch)


def _sum_of_powers(numbers, power: int):
  """The sum of numbers, or of their squares, from the first to the last."""
  if power == 1:
    return functools.reduce(arith.addf, numbers)
  first, *others = numbers
  return functools.reduce(lambda before, number: math.fma(number, number, before), others, arith.mulf(first, first))


def combined(arrays, kinds: tuple[str, ...], places: token_registers.Places, scratch):
  """Numbers of a whole token, one for each array.

  Args:
    arrays: [K] each, of bfloat16, float16 or float32 for an extreme, of int32 for a sum.
    kinds: `max`, `min`, `magnitude` or `sum`.
    places: where the features lie.
    scratch: int32 [len(arrays), 4] of shared memory that nobody else uses.

  Returns:
    Scalars, float32 or int32.
  """
  dtypes = [jnp.int32 if kind == 'sum' else jnp.float32 for kind in kinds]

  @plgpu.inline_mgpu(
      arg_types=(*[places.layout()] * len(arrays), plgpu.RefType()),
      return_type=tuple(plgpu.ShapeDtypeStruct((), dtype, layout=None) for dtype in dtypes))
  def combine(ctx, *operands):
    del ctx
    *arrays, scratch = operands
    words = [_of_thread(array, kind, places) for array, kind in zip(arrays, kinds)]
    words = [utils.redux(word, threads.constant(-1), _KINDS[kind][0]) for word, kind in zip(words, kinds)]
    results = []
    for kind, of_warps in zip(kinds, _of_warps(words, scratch)):
      word = functools.reduce(_KINDS[kind][1], of_warps)
      results.append(_scalar(word, True) if kind == 'sum' else
                     _scalar(utils.bitcast(_inverted(word), ir.F32Type.get())))
    return tuple(results)

  return combine(*arrays, scratch)


def _of_thread(array, kind, places):
  """A word of a thread: its sum, or the bits of its extreme as an integer of the same order."""
  if kind == 'sum':
    return functools.reduce(arith.addi, threads.elements(array.registers.flat))
  registers = list(array.registers.flat)
  wide = functools.partial(_asm, f'{_EXTREMES[kind]}.f32')
  if array.mlir_dtype == ir.F32Type.get():
    vectors = functools.reduce(
        lambda a, b: [wide(*pair) for pair in zip(a, b)], [threads.elements([register]) for register in registers])
    number = functools.reduce(wide, vectors)
  else:
    name = 'bf16x2' if array.mlir_dtype == ir.BF16Type.get() else 'f16x2'
    words = ir.VectorType.get((places.width // 2,), threads.i32())
    split = [utils.bitcast(register, words) for register in registers]
    packed = functools.reduce(functools.partial(_asm, f'{_EXTREMES[kind]}.{name}'), threads.elements(split))
    pair = utils.bitcast(packed, ir.VectorType.get((2,), array.mlir_dtype))
    number = wide(*(arith.extf(ir.F32Type.get(), threads.element(pair, i)) for i in range(2)))
  bits = utils.bitcast(number, threads.i32())
  return arith.andi(bits, threads.constant(0x7FFFFFFF)) if kind == 'magnitude' else _inverted(bits)


def _inverted(bits):
  """All bits but the sign inverted where it is set: floats as integers of the same order, and back."""
  mask = arith.andi(arith.shrsi(bits, threads.constant(31)), threads.constant(0x7FFFFFFF))
  return arith.xori(bits, mask)


def _of_warps(numbers, scratch):
  """Of each number, which all lanes of a warp have, that of every warp."""
  place = lambda row, warp: [threads.index(threads.constant(row)), threads.index(warp)]
  warp = arith.shrui(threads.number(), threads.constant(5))
  for row, number in enumerate(numbers):
    memref.store(number, scratch, place(row, warp))
  utils.warpgroup_barrier()
  return [[memref.load(scratch, place(row, threads.constant(other))) for other in range(threads.WARPS)]
          for row in range(len(numbers))]


def _asm(instruction, a, b):
  """An instruction of two operands of 32 bits each."""
  wide = isinstance(a.type, ir.FloatType)
  result = ir.F32Type.get() if wide and not instruction.startswith('cvt') else threads.i32()
  constraints = ('=f' if result != threads.i32() else '=r') + (',f,f' if wide else ',r,r')
  return utils.llvm.inline_asm(result, [a, b], f'{instruction} $0, $1, $2;', constraints)


def _special(name: str, value):
  """An approximate function of a float32 number."""
  return utils.llvm.inline_asm(ir.F32Type.get(), [value], f'{name}.approx.ftz.f32 $0, $1;', '=f,f')


def _scalar(number, signed=None):
  return mgpu.FragmentedArray.splat(number, (), is_signed=signed)
