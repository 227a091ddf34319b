"""The Walsh-Hadamard transform of a token that a warpgroup holds in registers.

It works on the bits of a feature's index. Rounds over bits that count what a thread holds are sums in its registers,
those over bits of the lane one exchange (`shfl`) each, and the two over bits of the warp go through shared memory
together. It is exact float32 for every dtype and takes any block. `Places` gives a thread as many low bits as whole
sectors of memory allow, so that 2 exchanges a number are left for blocks of 128, less than the memory takes. A product
with the matrix of +-1 on the tensor cores would need operands of 16 bits, tokens in tiles of 64 blocks, and a second
pass for blocks larger than 256.
"""

import itertools

from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith
from jax.extend.mlir.dialects import math
from jax.extend.mlir.dialects import vector
import jax.numpy as jnp

from kernels.mosaic import threads
from kernels.mosaic import token_registers


def butterflies(x, places: token_registers.Places, block: int, scratch=None):
  """Products of blocks with the Walsh-Hadamard matrix of +-1, summed in the order of `kernels.before.butterflies`.

  Args:
    x: float32 [K] in the layout of `places`.
    places: where the features lie.
    block: a power of two that divides K.
    scratch: float32 [K] of shared memory, where `exchanged`.

  Returns:
    float32 [K] in the same layout.
  """
  layout, rounds = places.layout(), places.rounds(block)
  across = [distance for kind, distance in rounds if kind == 'thread']

  @plgpu.inline_mgpu(
      arg_types=(layout, *(() if scratch is None else (plgpu.RefType(),))),
      return_type=plgpu.ShapeDtypeStruct(x.shape, jnp.float32, layout=layout))
  def transform(ctx, array, *refs):
    del ctx
    thread = threads.number()
    values = [[threads.element(register, i) for i in range(places.width)] for register in array.registers.flat]
    for kind, distance in rounds:
      if kind == 'neighbor':
        values = [_local(numbers, distance) for numbers in values]
      elif kind == 'load':
        values = _local(values, distance)
      elif kind == 'lane':
        sign = _sign(thread, distance)
        values = [[math.fma(v, sign, utils.shfl_bfly(v, distance)) for v in numbers] for numbers in values]
      elif distance == across[0]:  # the other one goes with it
        values = _across_warps(values, refs[0], thread, across)
    vectors = [vector.from_elements(array.registers.flat[0].type, numbers) for numbers in values]
    registers = array.registers.copy()
    registers.flat = vectors
    return mgpu.FragmentedArray(_registers=registers, _layout=array.layout, _is_signed=None)

  return transform(x, *(() if scratch is None else (scratch,)))


def _local(values, distance: int):
  """Sums and differences of entries `distance` apart: of numbers, or of lists of them."""
  def pair(low, high):
    if isinstance(low, list):
      return tuple(list(part) for part in zip(*(pair(*both) for both in zip(low, high))))
    return arith.addf(low, high), arith.subf(low, high)

  result = list(values)
  for i in range(len(values)):
    if not i & distance:
      result[i], result[i + distance] = pair(values[i], values[i + distance])
  return result


def _across_warps(values, scratch, thread, distances):
  """The rounds across warps, from what all warps have written to shared memory: 4 numbers at a time, side by side."""
  width = len(values[0])
  part = token_registers.at_once(width)
  for i, numbers in enumerate(values):
    token_registers.store_numbers(numbers, scratch, thread, i)
  utils.warpgroup_barrier()
  signs = [_sign(thread, distance) for distance in distances]
  read = lambda of_thread, i, first: token_registers.load_numbers(scratch, of_thread, i, first, part, width)

  def other(of, distance):
    return arith.xori(of, threads.constant(distance))

  result = [list(numbers) for numbers in values]
  combine = lambda mine, yours, sign: [math.fma(a, sign, b) for a, b in zip(mine, yours)]
  for i, first in itertools.product(range(len(values)), range(0, width, part)):
    window = slice(first, first + part)
    mine = combine(values[i][window], read(other(thread, distances[0]), i, first), signs[0])
    if len(distances) > 1:
      far = other(thread, distances[1])
      theirs = combine(read(far, i, first), read(other(far, distances[0]), i, first), signs[0])
      mine = combine(mine, theirs, signs[1])
    result[i][window] = mine
  return result


def _sign(thread, distance: int):
  """-1.0 where the thread is the upper one of two that are `distance` apart, else 1.0."""
  upper = arith.cmpi(arith.CmpIPredicate.ne, arith.andi(thread, threads.constant(distance)), threads.constant(0))
  number = lambda value: mgpu.c(value, ir.F32Type.get())
  return arith.select(upper, number(-1.0), number(1.0))
