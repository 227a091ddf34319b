"""Arithmetic on a token that warpgroups hold in registers: conversions, and numbers that belong to all its features.

A warpgroup holds one slice of a token, and each warpgroup of a block another. A number for the whole token is made in
the registers of a thread, by exchanges in a warp, and through shared memory, which costs all warpgroups one barrier;
what a block needs at the same time goes together. Extremes and sums of codes are the same in any order. The sum of a
norm is not, so that its order is that of the features and does not depend on how many warpgroups there are: a thread's
place first, from the first load to the last, then lanes, then warps.
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

from kernels.mosaic import token_registers

_LANES, _WARPS = 32, 4
_PACKED = {jnp.dtype(jnp.bfloat16): 'bf16x2', jnp.dtype(jnp.float16): 'f16x2'}


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
      words = [_asm(f'cvt.rn.{_PACKED[jnp.dtype(dtype)]}.f32', _element(register, i + 1), _element(register, i))
               for i in range(0, places.width, 2)]
      joined = vector.from_elements(ir.VectorType.get((len(words),), _i32()), words)
      vectors.append(utils.bitcast(joined, ir.VectorType.get((places.width,), utils.dtype_to_ir_type(dtype))))
    registers.flat = vectors
    return mgpu.FragmentedArray(_registers=registers, _layout=array.layout, _is_signed=None)

  return convert(values)


def total(values, power: int, places: token_registers.Places, warpgroups: int, scratch):
  """The sum over a token of numbers, or of their squares, float32, in an order that does not depend on `warpgroups`.

  Args:
    values: float32 [K], a warpgroup's slice; all slices are equally long and none overlap.
    power: 1 or 2.
    places: where the features of a slice lie.
    warpgroups: slices of the token.
    scratch: float32 of shared memory, as many as `total_scratch`, that nobody else uses.
  """
  loads = places.features // (_LANES * _WARPS * places.width)

  @plgpu.inline_mgpu(
      arg_types=(places.layout(), plgpu.RefType()), return_type=plgpu.ShapeDtypeStruct((), jnp.float32, layout=None))
  def add(ctx, array, scratch):
    del ctx
    thread = utils.thread_idx()
    local = arith.remui(thread, _constant(_LANES * _WARPS))
    sums = [_sum_of_powers([_element(register, i) for i in range(places.width)], power)
            for register in array.registers.flat]
    if warpgroups > 1:
      # Another warpgroup's sums of the same place in each load: what a single one would have in registers.
      first = arith.muli(arith.subi(thread, local), _constant(loads))
      for load, number in enumerate(sums):
        _store(scratch, number, arith.addi(arith.addi(first, local), _constant(load * _LANES * _WARPS)))
      utils.gpu.barrier()
      sums = [_load(scratch, arith.addi(local, _constant(load * _LANES * _WARPS)))
              for load in range(loads * warpgroups)]
    number = functools.reduce(arith.addf, sums)
    for distance in (1, 2, 4, 8, 16):
      number = arith.addf(number, utils.shfl_bfly(number, distance))
    of_warps = loads * warpgroups * _LANES * _WARPS if warpgroups > 1 else 0
    # All warpgroups write the same four numbers to the same place.
    _store(scratch, number, arith.addi(_constant(of_warps), arith.shrui(local, _constant(5))))
    utils.gpu.barrier()
    first, second, third, fourth = (_load(scratch, _constant(of_warps + warp)) for warp in range(_WARPS))
    return _scalar(arith.addf(arith.addf(first, second), arith.addf(third, fourth)))

  return add(values, scratch)


def _sum_of_powers(numbers, power: int):
  """The sum of numbers, or of their squares, from the first to the last."""
  if power == 1:
    return functools.reduce(arith.addf, numbers)
  first, *others = numbers
  return functools.reduce(lambda before, number: math.fma(number, number, before), others, arith.mulf(first, first))


def total_scratch(features: int, width: int, warpgroups: int) -> int:
  """Numbers of shared memory that `total` takes for a token."""
  return _WARPS + (features // width if warpgroups > 1 else 0)


def combined(arrays, kinds: tuple[str, ...], places: token_registers.Places, warpgroups: int, scratch, first=None):
  """Numbers of a whole token, one for each array.

  Args:
    arrays: [K] each, a warpgroup's slice: of bfloat16, float16 or float32 for an extreme, of int32 for a sum.
    kinds: `max`, `min` or `sum`.
    places: where the features of a slice lie.
    warpgroups: slices of the token.
    scratch: int32 [len(arrays), 32] of shared memory that nobody else uses.
    first: int32 scalar, a multiple of `places.width` up to K: features of the slice that sums leave out; None: none.

  Returns:
    Scalars, float32 or int32.
  """
  outer = (plgpu.Layout.WG_SPLAT,) if first is not None else ()
  dtypes = [jnp.int32 if kind == 'sum' else jnp.float32 for kind in kinds]

  @plgpu.inline_mgpu(
      arg_types=(*[places.layout()] * len(arrays), plgpu.RefType(), *outer),
      return_type=tuple(plgpu.ShapeDtypeStruct((), dtype, layout=None) for dtype in dtypes))
  def combine(ctx, *operands):
    del ctx
    arrays, (scratch, *skipped) = operands[: len(kinds)], operands[len(kinds) :]
    thread = utils.thread_idx()
    lane, warp = arith.remui(thread, _constant(_LANES)), arith.shrui(thread, _constant(5))
    for row, (array, kind) in enumerate(zip(arrays, kinds)):
      number = _of_thread(array, kind, places, thread, *skipped)
      number = _redux(number if kind == 'sum' else _ordered(number), kind)
      _store(scratch, number, _constant(row), warp)
    utils.gpu.barrier()
    results = []
    for row, kind in enumerate(kinds):
      there = arith.cmpi(arith.CmpIPredicate.ult, lane, _constant(_WARPS * warpgroups))
      number = _load(scratch, _constant(row), arith.select(there, lane, _constant(0)))
      if kind == 'sum':
        results.append(_scalar(_redux(arith.select(there, number, _constant(0)), kind), True))
      else:
        results.append(_scalar(utils.bitcast(_inverted(_redux(number, kind)), ir.F32Type.get())))
    return tuple(results)

  return combine(*arrays, scratch, *(() if first is None else (first,)))


def _of_thread(array, kind, places, thread, skipped=None):
  """A thread's extreme as float32, or its sum as int32."""
  registers = list(array.registers.flat)
  if kind == 'sum':
    sums = [functools.reduce(arith.addi, [_element(register, i) for i in range(places.width)])
            for register in registers]
    if skipped is not None:
      local = arith.remui(thread, _constant(_LANES * _WARPS))
      for load, number in enumerate(sums):
        feature = arith.addi(arith.muli(local, _constant(places.width)), _constant(load * places.run))
        counts = arith.cmpi(arith.CmpIPredicate.uge, feature, skipped.registers.item())
        sums[load] = arith.select(counts, number, _constant(0))
    return functools.reduce(arith.addi, sums)
  wide = functools.partial(_asm, f'{kind}.NaN.f32')
  if array.mlir_dtype == ir.F32Type.get():
    vectors = functools.reduce(
        lambda a, b: [wide(*pair) for pair in zip(a, b)],
        [[_element(register, i) for i in range(places.width)] for register in registers])
    return functools.reduce(wide, vectors)
  name = 'bf16x2' if array.mlir_dtype == ir.BF16Type.get() else 'f16x2'
  words = ir.VectorType.get((places.width // 2,), _i32())
  split = [utils.bitcast(register, words) for register in registers]
  packed = functools.reduce(
      functools.partial(_asm, f'{kind}.NaN.{name}'),
      [_element(register, i) for register in split for i in range(places.width // 2)])
  pair = utils.bitcast(packed, ir.VectorType.get((2,), array.mlir_dtype))
  return wide(*(arith.extf(ir.F32Type.get(), _element(pair, i)) for i in range(2)))


def _ordered(number):
  """The bits of a float32 as an integer of the same order."""
  return _inverted(utils.bitcast(number, _i32()))


def _inverted(bits):
  """All bits but the sign inverted where it is set: floats as ordered integers, and back."""
  mask = arith.andi(arith.shrsi(bits, _constant(31)), _constant(0x7FFFFFFF))
  return arith.xori(bits, mask)


def _redux(number, kind):
  """Combines the int32 of a warp's lanes."""
  kinds = {'sum': utils.ReductionKind.ADD, 'max': utils.ReductionKind.MAX, 'min': utils.ReductionKind.MIN}
  return utils.redux(number, _constant(0xFFFFFFFF - (1 << 32)), kinds[kind])


def _asm(instruction, a, b):
  """An instruction of two operands of 32 bits each."""
  wide = isinstance(a.type, ir.FloatType)
  result = ir.F32Type.get() if wide and not instruction.startswith('cvt') else _i32()
  constraints = ('=f' if result != _i32() else '=r') + (',f,f' if wide else ',r,r')
  return utils.llvm.inline_asm(result, [a, b], f'{instruction} $0, $1, $2;', constraints)


def _store(scratch, number, *index) -> None:
  memref.store(number, scratch, [_index(i) for i in index])


def _load(scratch, *index):
  return memref.load(scratch, [_index(i) for i in index])


def _index(number):
  return arith.index_cast(ir.IndexType.get(), number)


def _scalar(number, signed=None):
  return mgpu.FragmentedArray.splat(number, (), is_signed=signed)


def _element(register, place: int):
  return vector.extract(
      register, dynamic_position=[], static_position=ir.DenseI64ArrayAttr.get([place]))


def _constant(value: int):
  return mgpu.c(value, _i32())


def _i32():
  return ir.IntegerType.get_signless(32)
