"""Sums of one block that are spread over its warpgroups and over runs of the inputs.

With `fold` runs of the inputs, 64 rows of weights are 64 / fold outputs, once for each run, those of a run in warps of
their own. These exchange their sums through shared memory, where other warpgroups' sums are added up as well, so that
warps of the same outputs all have the whole sum.
"""

import functools

from jax import lax
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import fragmented_array
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith
from jax.extend.mlir.dialects import vector

from kernels.mosaic import thread_memory
from kernels.mosaic import threads


def layout(fold: int):
  """Where a warpgroup has [64 / fold, tokens] after `add_up`: of two runs, half of the warps have what the others have.
  """
  if fold == 1:
    return plgpu.Layout.WGMMA
  tiling = fragmented_array.Tiling(((32, 8), (16, 8), (8, 8), (2,)))
  return plgpu.Layout.TILED(tiling, (fragmented_array.Replicated(2), -7), (-3, -2), -1)


def buffer(count: int, size: int, dtype):
  """Shared memory for `count` warpgroups' sums, `size` each."""
  return plgpu.SMEM((max(1, count), size), dtype)


def publish(sums, buffer) -> None:
  """Writes a warpgroup's sums.

  Args:
    sums: int32 or float32 [rows, tokens] in the layout of an accumulator.
    buffer: the warpgroup's part of the shared memory, [rows * tokens].
  """
  @plgpu.inline_mgpu(arg_types=(plgpu.Layout.WGMMA, plgpu.RefType()))
  def write(ctx, array, buffer):
    del ctx
    # By 8 columns and half of the rows, pairs.
    thread_memory.store(threads.elements(array.registers.flat), thread_memory.QUAD, buffer, threads.number())

  write(sums, buffer)


def add_up(sums, buffer, fold: int, count: int):
  """The sums [rows / fold, tokens], in `layout`, of a warpgroup's own and of what is published.

  Args:
    sums: this warpgroup's, as above.
    buffer: shared memory of at least `count` sums of others, of warpgroups or blocks, [..., rows * tokens].
    fold: runs of inputs; of more than one, this warpgroup's own sums are in the buffer, too.
    count: how many are there.
  """
  rows, columns = sums.shape
  shape = rows // fold, columns

  @plgpu.inline_mgpu(
      arg_types=(plgpu.Layout.WGMMA, plgpu.RefType()),
      return_type=plgpu.ShapeDtypeStruct(shape, sums.dtype, layout=layout(fold)))
  def read(ctx, array, buffer):
    del ctx
    thread, of_run = threads.number(), threads.WARPGROUP // fold
    first = arith.remui(thread, threads.constant(of_run))
    add = arith.addi if isinstance(array.mlir_dtype, ir.IntegerType) else arith.addf
    wanted = layout(fold).to_mgpu()
    own = array.registers.reshape(-1, 2)
    results = []
    for block, pair in enumerate(own):
      found = [] if fold > 1 else [threads.elements(pair)]
      for source in range(count):
        for run in range(fold):
          other, row = arith.addi(first, threads.constant(run * of_run)), arith.constant(ir.IndexType.get(), source)
          found.append(thread_memory.load(buffer, other, thread_memory.QUAD * block, thread_memory.QUAD, row))
      numbers = functools.reduce(lambda a, b: [add(*pair) for pair in zip(a, b)], found)
      kind = ir.VectorType.get((2,), array.mlir_dtype)
      results += [vector.from_elements(kind, numbers[:2]), vector.from_elements(kind, numbers[2:])]
    registers = own.reshape(wanted.registers_shape(shape)).copy()
    registers.flat = results
    return mgpu.FragmentedArray(_registers=registers, _layout=wanted, _is_signed=array.is_signed)

  return read(sums, buffer)


def of_rows(vector, fold: int):
  """A vector of outputs as that of the rows that hold them, once for each run.

  Args:
    vector: [rows / fold] in `layout(fold).reduce(1)`.
    fold: runs of inputs.

  Returns:
    [rows] in the layout that an accumulator has for its rows, of which each thread has the same registers: of two runs,
    half of the warps have what the others have either way.
  """
  if fold == 1:
    return vector
  wanted = plgpu.Layout.WGMMA.reduce(1)
  shape = (fold * len(vector),)

  @plgpu.inline_mgpu(
      arg_types=(layout(fold).reduce(1),), return_type=plgpu.ShapeDtypeStruct(shape, vector.dtype, layout=wanted))
  def view(ctx, array):
    del ctx
    registers = array.registers.reshape(wanted.to_mgpu().registers_shape(shape))
    return mgpu.FragmentedArray(_registers=registers, _layout=wanted.to_mgpu(), _is_signed=array.is_signed)

  return view(vector)


def of_runs(vectors, shape):
  """Vectors of tokens, of one run or of each of two, along the rows that hold it.

  Args:
    vectors: a list of [tokens] in the layout that an accumulator has for its columns.
    shape: [rows, tokens] of the result.
  """
  if len(vectors) == 1:
    return lax.broadcast_in_dim(vectors[0], shape, [1])
  layout, of_tokens = plgpu.Layout.WGMMA, plgpu.Layout.WGMMA.reduce(0)

  @plgpu.inline_mgpu(
      arg_types=(of_tokens, of_tokens), return_type=plgpu.ShapeDtypeStruct(shape, vectors[0].dtype, layout=layout))
  def choose(ctx, first, second):
    del ctx
    later = arith.cmpi(arith.CmpIPredicate.uge, threads.number(), threads.constant(threads.WARPGROUP // 2))
    # For both halves of the 16 rows of a warp.
    registers = first.registers.repeat(2).reshape(layout.to_mgpu().registers_shape(shape))
    registers.flat = [arith.select(later, b, a) for a, b in zip(registers.flat, second.registers.repeat(2))]
    return mgpu.FragmentedArray(_registers=registers, _layout=layout.to_mgpu(), _is_signed=first.is_signed)

  return choose(*vectors)
