"""Numbers of the 8 columns of an accumulator, over all of its rows: one barrier of a warpgroup, in memory of its own.

Mosaic's own reductions lend all warpgroups of a block the same memory, and take two barriers.
"""

import functools

from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith
from jax.extend.mlir.dialects import math
from jax.extend.mlir.dialects import vector
import jax.numpy as jnp

from kernels.mosaic import threads

COLUMNS = 8

_LAYOUT = plgpu.Layout.WGMMA
_OF_ROWS, _OF_COLUMNS = _LAYOUT.reduce(1), _LAYOUT.reduce(0)
_KINDS = {'sum': arith.addf, 'max': arith.maximumf}


def memory(count: int):
  """Shared memory for as many reductions."""
  return plgpu.SMEM((count, threads.WARPS, COLUMNS), jnp.float32)


def over_rows(array, kind: str, scratch):
  """The sums or the largest of the rows, float32 [8] in the layout that an accumulator has for its columns.

  Args:
    array: float32 [rows, 8] in the layout of an accumulator.
    kind: `sum` or `max`.
    scratch: float32 [4, 8] of shared memory, written again only behind another barrier of the warpgroup.
  """
  @plgpu.inline_mgpu(
      arg_types=(_LAYOUT, plgpu.RefType()),
      return_type=plgpu.ShapeDtypeStruct((COLUMNS,), jnp.float32, layout=_OF_COLUMNS))
  def reduce(ctx, array, scratch):
    del ctx
    pairs = [threads.elements([register]) for register in array.registers.flat]
    found = _of_warpgroup([functools.reduce(_KINDS[kind], column) for column in zip(*pairs)], kind, scratch)
    layout = _OF_COLUMNS.to_mgpu()
    registers = mgpu.FragmentedArray.splat(mgpu.c(0.0, ir.F32Type.get()), (COLUMNS,), layout).registers.copy()
    registers.flat = [vector.from_elements(ir.VectorType.get((2,), ir.F32Type.get()), found)]
    return mgpu.FragmentedArray(_registers=registers, _layout=layout, _is_signed=None)

  return reduce(array, scratch)


def magnitudes(first, second, scratch):
  """The largest magnitude in each of two vectors, two scalars.

  Args:
    first, second: float32 [rows], in the layout that an accumulator has for its rows.
    scratch: as above.
  """
  scalar = plgpu.ShapeDtypeStruct((), jnp.float32, layout=None)

  @plgpu.inline_mgpu(arg_types=(_OF_ROWS, _OF_ROWS, plgpu.RefType()), return_type=(scalar, scalar))
  def reduce(ctx, *operands):
    del ctx
    *arrays, scratch = operands
    tops = [functools.reduce(arith.maximumf, [math.absf(threads.element(register, 0))
                                              for register in array.registers.flat]) for array in arrays]
    return tuple(mgpu.FragmentedArray.splat(number, ()) for number in _of_warpgroup(tops, 'max', scratch))

  return reduce(first, second, scratch)


def _of_warpgroup(pair, kind, scratch):
  """Two numbers of a thread, over the lanes and warps that have the same columns."""
  reduce = _KINDS[kind]
  for distance in (4, 8, 16):
    pair = [reduce(number, utils.shfl_bfly(number, distance)) for number in pair]
  vector_type = ir.VectorType.get((2,), ir.F32Type.get())
  thread = threads.number()
  column = arith.muli(arith.andi(thread, threads.constant(3)), threads.constant(2))
  place = lambda warp: [threads.index(warp), threads.index(column)]
  # Lanes of the same columns store the same.
  vector.store(vector.from_elements(vector_type, pair), scratch, place(arith.shrui(thread, threads.constant(5))))
  utils.warpgroup_barrier()
  loaded = [vector.load(vector_type, scratch, place(threads.constant(warp))) for warp in range(threads.WARPS)]
  return [functools.reduce(reduce, [threads.element(register, i) for register in loaded]) for i in range(2)]
