"""What threads do with a token that a warpgroup holds in registers, beyond what arrays of Mosaic can say.

The transform works on the bits of a feature's index. Rounds over bits that count what a thread holds are sums in its
registers, those over bits of the lane one exchange (`shfl`) each, and the two over bits of the warp go through shared
memory together. It is exact float32 for every dtype and takes any block. `Places` gives a thread as many low bits as
whole sectors of memory allow, so that 2 exchanges a number are left for blocks of 128, less than the memory takes. A
product with the matrix of +-1 on the tensor cores would need operands of 16 bits, tokens in tiles of 64 blocks, and a
second pass for blocks larger than 256.
"""

import dataclasses

from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import fragmented_array
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith
from jax.extend.mlir.dialects import math
from jax.extend.mlir.dialects import vector
import jax.numpy as jnp

from kernels.mosaic import threads


@dataclasses.dataclass(frozen=True)
class Places:
  """Where the features of a token lie.

  From the lowest, the bits of a feature's index are: its place among the neighbors that a thread loads at once, the
  lowest bit of the lane, the place among `inner` loads, the other bits of the lane, the warp, the run of all threads.
  Two lanes share a sector of 32 bytes, and consecutive loads complete a line.

  Attributes:
    features: of the token.
    width: neighbors that a thread loads at once, 8, 4 or 2.
    inner: 1, 2 or 4.
  """

  features: int
  width: int
  inner: int

  @property
  def run(self) -> int:
    """Features after which the pattern repeats."""
    return threads.WARPGROUP * self.width * self.inner

  def _sizes(self) -> tuple[int, ...]:
    """Features of all threads, of a warp, of two lanes, of their loads, of one load."""
    return self.run, self.run // 4, 2 * self.width * self.inner, 2 * self.width, self.width

  def layout(self, per_byte: int = 1):
    """The layout of an array [features], or [features / per_byte] where that many share an entry."""
    if self.inner == 1:  # the same places, by a name for which Mosaic emits the plainest access to memory
      return plgpu.Layout.WG_STRIDED((self.features // per_byte,), vec_size=self.width // per_byte)
    return _parameters(self.tiled(self.features, per_byte))

  def tiled(self, columns: int, per_byte: int = 1):
    """The layout as an array of rows of `columns`."""
    sizes = [size // per_byte for size in self._sizes()]
    if columns >= self.features:
      tiles = [(size,) for size in sizes]
    else:
      tiles = [(max(1, size // columns), min(size, columns)) for size in sizes]
    rank = len(tiles[0])
    # Behind tiling, the axes from the last: those of a tile of a load, and of its number in the next larger one, ...
    found = lambda level: tuple(
        -rank * (len(tiles) - level) + axis for axis in range(rank)
        if tiles[level][axis] > tiles[level + 1][axis])
    return fragmented_array.TiledLayout(
        fragmented_array.Tiling(tuple(tiles)), found(0), (*found(1), *found(3)), -1, _check_canonical=False
    ).canonicalize()

  def exchanged(self, block: int) -> bool:
    """Whether `butterflies` of such blocks go through shared memory."""
    return block > threads.LANES * self.width * self.inner

  def rounds(self, block: int) -> list[tuple[str, int]]:
    """For every round of a transform what pairs are apart: `neighbor`, `load`, `lane` or `thread`, and how many."""
    powers = lambda kind, first, end: [(kind, 1 << bit) for bit in range(first, end)]
    bits = lambda count: count.bit_length() - 1
    inner = bits(self.inner)
    order = [*powers('neighbor', 0, bits(self.width)), ('lane', 1), *powers('load', 0, inner), *powers('lane', 1, 5),
             *powers('thread', 5, 7), *powers('load', inner, 32)]
    return order[: bits(block)]


def butterflies(x, places: Places, block: int, scratch=None):
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


def fetch(token) -> None:
  """Lets the GPU's cache read a token: a reference to memory [K], of a multiple of 16 bytes."""
  size = token.shape[0] * jnp.dtype(token.dtype).itemsize

  @plgpu.inline_mgpu(arg_types=(plgpu.RefType(),))
  def start(ctx, token):
    del ctx
    utils.llvm.inline_asm(
        None, [utils.memref_ptr(token), threads.constant(size), threads.number()],
        '{ .reg .pred first; setp.eq.u32 first, $2, 0; @first cp.async.bulk.prefetch.L2.global [$0], $1; }', 'l,r,r',
        has_side_effects=True)

  start(token)


def grouped(codes, places: Places, group_size: int):
  """The same registers as int32 [K / group_size, group_size], so that groups can be summed."""
  shape, target = (places.features // group_size, group_size), places.tiled(group_size)

  @plgpu.inline_mgpu(
      arg_types=(places.layout(),),
      return_type=plgpu.ShapeDtypeStruct(shape, jnp.int32, layout=_parameters(target)))
  def regroup(ctx, array):
    del ctx
    return mgpu.FragmentedArray(
        _registers=array.registers.reshape(target.registers_shape(shape)), _layout=target, _is_signed=True)

  return regroup(codes)


def pack(codes, places: Places):
  """The low 4 bits of int32 [K], two in a byte of int8 [K / 2], the first in the low nibble."""
  shape, target = (places.features // 2,), places.layout(per_byte=2)

  @plgpu.inline_mgpu(
      arg_types=(places.layout(),), return_type=plgpu.ShapeDtypeStruct(shape, jnp.int8, layout=target))
  def nibbles(ctx, array):
    del ctx
    registers = array.registers.copy()  # of the same shape
    words = []
    for register in array.registers.flat:
      word = arith.andi(threads.element(register, 0), threads.constant(15))
      for place in range(1, places.width):
        nibble = arith.andi(threads.element(register, place), threads.constant(15))
        word = arith.ori(word, arith.shli(nibble, threads.constant(4 * place)))
      if places.width < 8:
        word = arith.trunci(ir.IntegerType.get_signless(4 * places.width), word)
      words.append(utils.bitcast(word, ir.VectorType.get((places.width // 2,), ir.IntegerType.get_signless(8))))
    registers.flat = words
    return mgpu.FragmentedArray(_registers=registers, _layout=target.to_mgpu(), _is_signed=True)

  return nibbles(codes)


def _parameters(layout):
  return plgpu.Layout.TILED(layout.tiling, layout.warp_dims, layout.lane_dims, layout.vector_dim)


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
    offset = i * threads.WARPGROUP * width + first * threads.WARPGROUP
    return arith.index_cast(
        ir.IndexType.get(), arith.addi(arith.muli(of_thread, threads.constant(part)), threads.constant(offset)))

  for i, first in places:
    vector.store(vector.from_elements(words, values[i][first : first + part]), scratch, [index(thread, i, first)])
  utils.warpgroup_barrier()
  signs = [_sign(thread, distance) for distance in distances]

  def read(of_thread, i, first):
    loaded = vector.load(words, scratch, [index(of_thread, i, first)])
    return [threads.element(loaded, place) for place in range(part)]

  def other(of, distance):
    return arith.xori(of, threads.constant(distance))

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
  upper = arith.cmpi(arith.CmpIPredicate.ne, arith.andi(thread, threads.constant(distance)), threads.constant(0))
  number = lambda value: mgpu.c(value, ir.F32Type.get())
  return arith.select(upper, number(-1.0), number(1.0))
