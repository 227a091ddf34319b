"""Where a warpgroup has the features of a token in registers; what moves them beyond what arrays of Mosaic can say."""

import dataclasses

from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import fragmented_array
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith
from jax.extend.mlir.dialects import vector
import jax.numpy as jnp

from kernels.mosaic import thread_memory
from kernels.mosaic import threads


@dataclasses.dataclass(frozen=True)
class Places:
  """Where the features of a token lie.

  From the lowest, the bits of a feature's index are: its place among the neighbors that a thread loads at once, the
  lane, the place among `inner` loads, the warp, the run of all threads.

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
    """Features of all threads, of a warp, of one of its loads, of a lane's."""
    return self.run, self.run // threads.WARPS, threads.LANES * self.width, self.width

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
        fragmented_array.Tiling(tuple(tiles)), found(0), found(2), -1, _check_canonical=False
    ).canonicalize()

  def exchanged(self, block: int) -> bool:
    """Whether a transform of such blocks goes through shared memory."""
    return block > threads.LANES * self.width * self.inner

  def behind(self, block: int) -> 'Places':
    """Where a transform leaves them: of four inner loads that go through shared memory, each warp has one."""
    return dataclasses.replace(self, inner=1) if self.inner == threads.WARPS and self.exchanged(block) else self

  def distances(self, block: int) -> dict[str, list[int]]:
    """What pairs of a transform are apart: `number`s of a thread, from its first load's on, `lane`s and `thread`s."""
    powers = lambda kind, first, end: [(kind, 1 << bit) for bit in range(first, end)]
    bits = lambda count: count.bit_length() - 1
    neighbors, numbers = bits(self.width), bits(self.width * self.inner)
    order = [*powers('number', 0, neighbors), *powers('lane', 0, 5), *powers('number', neighbors, numbers),
             *powers('thread', 5, 7), *powers('number', numbers, 32)]
    found = order[: bits(block)]
    return {kind: [distance for other, distance in found if other == kind] for kind in ('number', 'lane', 'thread')}


def keep(values, places: Places, scratch) -> None:
  """Writes float32 [K] to as much shared memory, where each thread finds its own again with `kept`."""
  @plgpu.inline_mgpu(arg_types=(places.layout(), plgpu.RefType()))
  def store(ctx, array, scratch):
    del ctx
    thread_memory.store(threads.elements(array.registers.flat), at_once(places.width), scratch, threads.number())

  store(values, scratch)


def kept(places: Places, scratch):
  """float32 [K] that `keep` wrote."""
  layout = places.layout()

  @plgpu.inline_mgpu(
      arg_types=(plgpu.RefType(),),
      return_type=plgpu.ShapeDtypeStruct((places.features,), jnp.float32, layout=layout))
  def read(ctx, scratch):
    del ctx
    zeros = mgpu.FragmentedArray.splat(mgpu.c(0.0, ir.F32Type.get()), (places.features,), layout.to_mgpu())
    registers, thread = zeros.registers.copy(), threads.number()
    size, width = at_once(places.width), places.width
    numbers = [number for first in range(0, registers.size * width, size)
               for number in thread_memory.load(scratch, thread, first, size)]
    registers.flat = [vector.from_elements(register.type, numbers[i * width : (i + 1) * width])
                      for i, register in enumerate(registers.flat)]
    return mgpu.FragmentedArray(_registers=registers, _layout=zeros.layout, _is_signed=None)

  return read(scratch)


def at_once(width: int) -> int:
  """Numbers of float32 that a thread moves at once."""
  return min(4, width)


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
