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

from kernels import gates
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


def half(token, places: Places, index: int):
  """A half of a token whose features are in pairs of runs (`gates.paired`): an array [K] of a reference to [2 K].

  Args:
    token: reference to memory.
    places: of the half.
    index: 0 for the gate, 1 for the others.
  """
  layout, width, run = places.layout(), places.width, gates.RUN

  @plgpu.inline_mgpu(
      arg_types=(plgpu.RefType(),),
      return_type=plgpu.ShapeDtypeStruct((places.features,), token.dtype, layout=layout))
  def read(ctx, token):
    del ctx
    element, feature = token.type.element_type, _feature(places)
    zeros = mgpu.FragmentedArray.splat(utils.c(0, element), (places.features,), layout.to_mgpu())
    registers = zeros.registers.copy()
    within = arith.andi(feature, threads.constant(run - 1))
    first = arith.subi(arith.shli(feature, threads.constant(1)), within)  # behind as many features of the other half
    kind, loaded = ir.VectorType.get((width,), element), []
    for i in range(registers.size):
      # Ahead are whole runs: several loads are next to each other only where each is one (`_inner` of activations).
      place = arith.addi(first, threads.constant(2 * _ahead(places, i) + index * run))
      loaded.append(vector.load(kind, token, [threads.index(place)]))
    registers.flat = loaded
    return mgpu.FragmentedArray(_registers=registers, _layout=zeros.layout, _is_signed=None)

  return read(token)


def _feature(places: Places):
  """The first feature of a thread, a word."""
  thread = threads.number()
  return arith.addi(
      arith.muli(arith.shrui(thread, threads.constant(1)), threads.constant(2 * places.width * places.inner)),
      arith.muli(arith.andi(thread, threads.constant(1)), threads.constant(places.width)))


def _ahead(places: Places, i: int) -> int:
  """How many features behind its first one the load `i` of a thread begins."""
  return i // places.inner * places.run + i % places.inner * 2 * places.width


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


def keep(values, places: Places, scratch) -> None:
  """Writes float32 [K] to as much shared memory, where each thread finds its own again with `kept`."""
  @plgpu.inline_mgpu(arg_types=(places.layout(), plgpu.RefType()))
  def store(ctx, array, scratch):
    del ctx
    thread = threads.number()
    for i, register in enumerate(array.registers.flat):
      store_numbers([threads.element(register, place) for place in range(places.width)], scratch, thread, i)

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
    registers.flat = [
        vector.from_elements(register.type, load_numbers(scratch, thread, i, 0, places.width, places.width))
        for i, register in enumerate(registers.flat)]
    return mgpu.FragmentedArray(_registers=registers, _layout=zeros.layout, _is_signed=None)

  return read(scratch)


def at_once(width: int) -> int:
  """Numbers of float32 that a thread moves at once."""
  return min(4, width)


def store_numbers(numbers, scratch, thread, i: int) -> None:
  """Writes the float32 numbers of a thread's load `i` to shared memory, 4 at a time, those of threads side by side."""
  size = at_once(len(numbers))
  for first in range(0, len(numbers), size):
    part = numbers[first : first + size]
    vector.store(vector.from_elements(_words(size), part), scratch, [_index(thread, i, first, len(numbers))])


def load_numbers(scratch, thread, i: int, first: int, count: int, width: int):
  """`count` numbers from the place `first` on of a thread's load `i` of `width`, that `store_numbers` has written."""
  found, size = [], at_once(width)
  for place in range(first, first + count, size):
    loaded = vector.load(_words(size), scratch, [_index(thread, i, place, width)])
    found += [threads.element(loaded, element) for element in range(size)]
  return found


def _words(count: int):
  return ir.VectorType.get((count,), ir.F32Type.get())


def _index(thread, i: int, first: int, width: int):
  """Where numbers of a thread's load `i` lie, from the place `first` on."""
  offset = i * threads.WARPGROUP * width + first * threads.WARPGROUP
  return threads.index(arith.addi(arith.muli(thread, threads.constant(at_once(width))), threads.constant(offset)))


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
