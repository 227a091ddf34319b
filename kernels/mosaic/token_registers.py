"""What threads do with a token that a warpgroup holds in registers, beyond what arrays of Mosaic can say.

A token lies in the layout WG_STRIDED: of each run of 128 * width features, a thread holds `width` neighbors. The bits
of a feature's index are then, from the lowest: its place among the neighbors, the lane, the warp, the run.

The transform works on those bits. Rounds within the neighbors or across runs are sums in a thread's registers, those
across lanes one exchange (`shfl`) each, and the two across warps go through shared memory together. It is exact float32
for every dtype and takes any block; 4 exchanges a number for blocks of 128 take less time than the memory does. A
product with the matrix of +-1 on the tensor cores would need operands of 16 bits, tokens in tiles of 64 blocks, and a
second pass for blocks larger than 256.
"""

from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import fragmented_array
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith
from jax.extend.mlir.dialects import math
from jax.extend.mlir.dialects import vector
import jax.numpy as jnp

_THREADS, _LANES = 128, 32


def exchanged(layout, block: int) -> bool:
  """Whether `butterflies` of such blocks go through shared memory."""
  return block > _LANES * layout.to_mgpu().vec_size


def butterflies(x, layout, block: int, scratch=None):
  """Products of blocks with the Walsh-Hadamard matrix of +-1, summed in the order of `kernels.before.butterflies`.

  Args:
    x: float32 [K] in `layout`.
    layout: WG_STRIDED.
    block: a power of two that divides K.
    scratch: float32 [K] of shared memory, where `exchanged`.

  Returns:
    float32 [K] in `layout`.
  """
  @plgpu.inline_mgpu(
      arg_types=(layout, *(() if scratch is None else (plgpu.RefType(),))),
      return_type=plgpu.ShapeDtypeStruct(x.shape, jnp.float32, layout=layout))
  def transform(ctx, array, *refs):
    del ctx
    width = array.layout.vec_size
    thread = arith.divui(_i32_of(next(array.layout.linear_thread_idxs())), _constant(width))
    values = [[_element(register, i) for i in range(width)] for register in array.registers]
    bit = 1
    while bit < block:
      distance = bit // width
      if bit < width:
        values = [_local(numbers, bit) for numbers in values]
      elif distance < _LANES:
        sign = _sign(thread, distance)
        values = [[math.fma(v, sign, utils.shfl_bfly(v, distance)) for v in numbers] for numbers in values]
      elif distance < _THREADS:
        # One round for blocks of two warps, else both.
        distances = [d for d in (_LANES, 2 * _LANES) if d * width < block]
        values = _across_warps(values, refs[0], thread, distances)
        bit <<= len(distances)
        continue
      else:
        values = _local(values, distance // _THREADS)
      bit *= 2
    registers = array.registers.copy()
    for i, numbers in enumerate(values):
      registers[i] = vector.from_elements(array.registers[i].type, numbers)
    return mgpu.FragmentedArray(_registers=registers, _layout=array.layout, _is_signed=None)

  return transform(x, *(() if scratch is None else (scratch,)))


def grouped(codes, layout, group_size: int):
  """The same registers as int32 [K / group_size, group_size], so that groups can be summed."""
  features, width = codes.shape[0], layout.to_mgpu().vec_size
  shape = features // group_size, group_size

  def part(run):
    """The rows and columns of `run` neighbors."""
    return max(1, run // group_size), min(run, group_size)

  of_all, of_warp, of_thread = (part(threads * width) for threads in (_THREADS, _LANES, 1))
  parts = lambda outer, inner, first: tuple(
      first + axis for axis in range(2) if outer[axis] > inner[axis])
  target = fragmented_array.TiledLayout(
      fragmented_array.Tiling((of_all, of_warp, of_thread)), parts(of_all, of_warp, -6),
      parts(of_warp, of_thread, -4), -1, _check_canonical=False).canonicalize()
  tiled = plgpu.Layout.TILED(target.tiling, target.warp_dims, target.lane_dims, target.vector_dim)

  @plgpu.inline_mgpu(
      arg_types=(layout,), return_type=plgpu.ShapeDtypeStruct(shape, jnp.int32, layout=tiled))
  def regroup(ctx, array):
    del ctx
    return mgpu.FragmentedArray(
        _registers=array.registers.reshape(target.registers_shape(shape)), _layout=target, _is_signed=True)

  return regroup(codes)


def pack(codes, layout):
  """The low 4 bits of int32 [K], two in a byte of int8 [K / 2], the first in the low nibble."""
  features, width = codes.shape[0], layout.to_mgpu().vec_size
  halved = plgpu.Layout.WG_STRIDED((features // 2,), vec_size=width // 2)

  @plgpu.inline_mgpu(
      arg_types=(layout,), return_type=plgpu.ShapeDtypeStruct((features // 2,), jnp.int8, layout=halved))
  def nibbles(ctx, array):
    del ctx
    registers = array.registers.copy()
    byte = ir.IntegerType.get_signless(8)
    for i, register in enumerate(array.registers):
      word = None
      for place in range(width):
        nibble = arith.andi(_element(register, place), _constant(15))
        nibble = arith.shli(nibble, _constant(4 * place)) if place else nibble
        word = nibble if word is None else arith.ori(word, nibble)
      if width < 8:
        word = arith.trunci(ir.IntegerType.get_signless(4 * width), word)
      registers[i] = utils.bitcast(word, ir.VectorType.get((width // 2,), byte))
    return mgpu.FragmentedArray(_registers=registers, _layout=halved.to_mgpu(), _is_signed=True)

  return nibbles(codes)


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
  part = min(4, width)
  words = ir.VectorType.get((part,), ir.F32Type.get())
  places = [(i, first) for i in range(len(values)) for first in range(0, width, part)]

  def index(of_thread, i, first):
    offset = i * _THREADS * width + first * _THREADS
    return arith.index_cast(
        ir.IndexType.get(), arith.addi(arith.muli(of_thread, _constant(part)), _constant(offset)))

  for i, first in places:
    vector.store(vector.from_elements(words, values[i][first : first + part]), scratch, [index(thread, i, first)])
  utils.warpgroup_barrier()
  signs = [_sign(thread, distance) for distance in distances]

  def read(of_thread, i, first):
    loaded = vector.load(words, scratch, [index(of_thread, i, first)])
    return [_element(loaded, place) for place in range(part)]

  def other(of, distance):
    return arith.xori(of, _constant(distance))

  result = [list(numbers) for numbers in values]
  combine = lambda mine, yours, sign: [math.fma(a, sign, b) for a, b in zip(mine, yours)]
  for i, first in places:
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
  zero = _constant(0)
  upper = arith.cmpi(arith.CmpIPredicate.ne, arith.andi(thread, _constant(distance)), zero)
  number = lambda value: mgpu.c(value, ir.F32Type.get())
  return arith.select(upper, number(-1.0), number(1.0))


def _element(register, place: int):
  return vector.extract(
      register, dynamic_position=[], static_position=ir.DenseI64ArrayAttr.get([place]))


def _i32_of(index):
  return arith.index_cast(ir.IntegerType.get_signless(32), index)


def _constant(value: int):
  return mgpu.c(value, ir.IntegerType.get_signless(32))
