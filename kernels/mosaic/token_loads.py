"""Loads of a token that arrays of Mosaic do not know: its halves, what the cache reads ahead, and all at once."""

from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith
from jax.extend.mlir.dialects import vector
import jax.numpy as jnp

from kernels import gates
from kernels.mosaic import threads
from kernels.mosaic import token_registers


def half(token, places: token_registers.Places, index: int):
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
      place = arith.addi(first, threads.constant(2 * _ahead(places, i) + index * run))
      loaded.append(vector.load(kind, token, [threads.index(place)]))
    registers.flat = loaded
    return mgpu.FragmentedArray(_registers=registers, _layout=zeros.layout, _is_signed=None)

  return read(token)


def _feature(places: token_registers.Places):
  """The first feature of a thread, a word."""
  thread = threads.number()
  warp, lane = arith.shrui(thread, threads.constant(5)), arith.andi(thread, threads.constant(threads.LANES - 1))
  return arith.addi(arith.muli(warp, threads.constant(places.run // threads.WARPS)),
                    arith.muli(lane, threads.constant(places.width)))


def _ahead(places: token_registers.Places, i: int) -> int:
  """How many features behind its first one the load `i` of a thread begins."""
  return i // places.inner * places.run + i % places.inner * threads.LANES * places.width


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


def together(values, others, places: token_registers.Places, token):
  """The same values, of which no thread has one before it has the others, too.

  A compiler moves loads behind a reduction, in front of what needs them, and memory is waited for twice. Here it cannot
  tell that nothing of the others is added.

  Args:
    values: [K] of 16 or 32 bits that were loaded.
    others: float32 [K], and scalars, that were loaded.
    places: where the features lie.
    token: the index of the block's.

  Returns:
    [K], the values.
  """
  layout, splat = places.layout(), plgpu.Layout.WG_SPLAT

  @plgpu.inline_mgpu(
      arg_types=(layout, *[layout if other.ndim else splat for other in others], splat),
      return_type=plgpu.ShapeDtypeStruct(values.shape, values.dtype, layout=layout))
  def tie(ctx, array, *rest):
    del ctx
    *others, token = rest
    nothing = threads.zero(token.registers.item())
    # A number of each load, of 16 bytes.
    numbers = [threads.element(register, i) if other.shape else register
               for other in others for register in other.registers.flat
               for i in (range(0, places.width, 4) if other.shape else (0,))]
    registers = array.registers.copy()
    kind = ir.VectorType.get((places.width * utils.bytewidth(array.mlir_dtype) // 4,), threads.i32())
    vectors = []
    for i, register in enumerate(registers.flat):
      words = utils.bitcast(register, kind)
      first, *words = (threads.element(words, j) for j in range(kind.shape[0]))
      for number in numbers[i::registers.size]:
        first = arith.ori(first, arith.andi(utils.bitcast(number, threads.i32()), nothing))
      vectors.append(utils.bitcast(vector.from_elements(kind, [first, *words]), register.type))
    registers.flat = vectors
    return mgpu.FragmentedArray(_registers=registers, _layout=array.layout, _is_signed=None)

  return tie(values, *others, token)
