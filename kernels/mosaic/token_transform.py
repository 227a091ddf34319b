"""The Walsh-Hadamard transform of a token that a warpgroup holds in registers.

It works on the bits of a feature's index, each of which is a bit of the lane, of the warp, or of the place among a
thread's numbers. The tensor cores do eight of them at once: 8 numbers of each lane of a warp are a matrix of 16 by 16,
which one product with a matrix of +-1 transforms along one side and a second one along the other; the sums of a product
lie as the other operand of the next does, and those of the second where the numbers were. Operands have 16 bits, so
that a number of more is the sum of up to three bfloat16. Of further bits, those of a thread's numbers are sums and
differences in its registers, and those of the warp go through shared memory together.
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

from kernels.mosaic import mma
from kernels.mosaic import thread_memory
from kernels.mosaic import threads
from kernels.mosaic import token_arithmetic
from kernels.mosaic import token_registers

# Numbers of a lane in a tile: 3 bits of their place, 5 of the lane.
_TILE = 8
# Significant bits of bfloat16, of which float32 has three times as many.
_BITS = 8
# By side of a tile, the bits that a product sums over: an operand has the lowest bit of the place, two of the lane and
# another of the place along it; other lanes' bits lie beside, and change places with these in the sums.
_SIDES = ((('number', 1), ('lane', 1), ('lane', 2), ('number', 2)),
          (('lane', 4), ('lane', 8), ('lane', 16), ('number', 4)))


def rotated(x, places: token_registers.Places, block: int, scratch=None):
  """Products of blocks with the normalized Walsh-Hadamard matrix (`kernels.before.rotated`).

  Between the products of a tile numbers have at least 16 significant bits, and 24 of float32; all sums are of float32.

  Args:
    x: bfloat16, float16 or float32 [K] in the layout of `places`.
    places: where the features lie.
    block: a power of two that divides K.
    scratch: float32 [K] of shared memory, where `places.exchanged(block)`.

  Returns:
    float32 [K] in the layout of `places.behind(block)`.
  """
  behind, width = places.behind(block).layout(), places.width
  terms, references = -(-(jnp.finfo(x.dtype).nmant + 1) // _BITS), [] if scratch is None else [scratch]

  @plgpu.inline_mgpu(
      arg_types=(places.layout(), *[plgpu.RefType()] * len(references)),
      return_type=plgpu.ShapeDtypeStruct(x.shape, jnp.float32, layout=behind))
  def transform(ctx, array, *refs):
    del ctx
    numbers = _transformed(_tiles(array, width, x.dtype, terms), places, block, terms, *refs)
    result = mgpu.FragmentedArray.splat(_number(0.0), x.shape, behind.to_mgpu())
    registers = result.registers.copy()
    registers.flat = [vector.from_elements(register.type, numbers[i * width : (i + 1) * width])
                      for i, register in enumerate(registers.flat)]
    return mgpu.FragmentedArray(_registers=registers, _layout=result.layout, _is_signed=None)

  return transform(x, *references)


def _transformed(tiles, places, block: int, terms: int, scratch=None):
  """The numbers of a thread behind the transform, from the words of `_tiles`."""
  distances, width = places.distances(block), places.width
  halvings, odd = divmod(block.bit_length() - 1, 2)
  # The matrices' entries have as much of 1 / sqrt(block) as is a power of two, each a half, since like ones are one.
  first, second = (_matrix([distance in distances[kind] for kind, distance in side], (halvings + i) // 2)
                   for i, side in enumerate(_SIDES))
  numbers = [number for tile in tiles for number in _tile(tile, first, second, max(2, terms))]
  numbers = numbers[: places.features // threads.WARPGROUP]  # the last tile may have been filled up
  for distance in distances['number']:
    numbers = numbers if distance < _TILE else _sums(numbers, distance)
  if scratch is not None:
    size = token_registers.at_once(width)
    thread_memory.store(numbers, size, scratch, threads.number())
    utils.warpgroup_barrier()
    if places.behind(block) != places:
      numbers = _transposed(len(numbers), size, scratch, distances['thread'], width)
    else:
      numbers = _across_warps(numbers, size, scratch, distances['thread'])
  return [arith.mulf(number, _number(0.5**0.5)) for number in numbers] if odd else numbers


def _tiles(array, width: int, dtype, terms: int):
  """For every 8 numbers of a lane the bfloat16 whose sums they are, as `_bfloat16` has them; bfloat16 as it is."""
  count = -(-array.registers.size * width // _TILE)
  if jnp.dtype(dtype) == jnp.bfloat16:
    pairs = ir.VectorType.get((width // 2,), threads.i32())
    words = threads.elements(utils.bitcast(register, pairs) for register in array.registers.flat)
    words += [threads.constant(0)] * (count * _TILE // 2 - len(words))
    return [[words[first : first + _TILE // 2]] for first in range(0, len(words), _TILE // 2)]
  numbers = threads.elements(array.registers.flat)
  if jnp.dtype(dtype) != jnp.float32:
    numbers = [arith.extf(ir.F32Type.get(), number) for number in numbers]
  numbers += [_number(0.0)] * (count * _TILE - len(numbers))
  return [_bfloat16(numbers[first : first + _TILE], terms) for first in range(0, len(numbers), _TILE)]


def _tile(words, first, second, terms: int):
  """The numbers of a tile behind both products."""
  halves = range(2)
  sums = [_product(first, [of_term[2 * half : 2 * half + 2] for of_term in words]) for half in halves]
  words = _bfloat16([sums[half][2 * row + i] for row, half, i in itertools.product(halves, repeat=3)], terms)
  sums = [_product(second, [of_term[2 * row : 2 * row + 2] for of_term in words]) for row in halves]
  return [sums[row][2 * half + i] for half, row, i in itertools.product(halves, repeat=3)]


def _matrix(transformed, halvings: int):
  """A matrix of 16 by 16 as an operand, four words: for each bit of an index that of the transform, or of identity.

  Args:
    transformed: for each of the four bits whether it is the transform's.
    halvings: how often it is halved.
  """
  constant = threads.constant
  row = arith.andi(arith.shrui(threads.number(), constant(2)), constant(7))
  *low, last = transformed
  mask = sum(1 << bit for bit, of_transform in enumerate(low) if of_transform)
  entries = []
  for i in range(2):
    column = arith.ori(arith.shli(arith.andi(threads.number(), constant(3)), constant(1)), constant(i))
    odd = arith.andi(math.ctpop(arith.andi(arith.andi(row, column), constant(mask))), constant(1))
    entry = arith.ori(constant(0x3F80 - (halvings << 7)), arith.shli(odd, constant(15)))  # the bits of a bfloat16
    other = arith.andi(arith.xori(row, column), constant(7 - mask))
    entries.append(arith.select(arith.cmpi(arith.CmpIPredicate.eq, other, constant(0)), entry, constant(0)))
  word = arith.ori(entries[0], arith.shli(entries[1], constant(16)))
  if not last:
    return [word, constant(0), constant(0), word]
  return [word, word, word, arith.xori(word, constant(0x80008000))]


def _product(matrix, terms):
  """Four sums of a product with two words of each term, the least first."""
  sums = [_number(0.0)] * 4
  for words in reversed(terms):
    sums = mma.instruction(jnp.bfloat16, matrix + words, sums)
  return sums


def _bfloat16(numbers, terms: int):
  """For each term the words of pairs of numbers: their highest 8 bits, the next 8, and so on, the last ones rounded."""
  result = []
  for _ in range(terms - 1):
    words = [utils.bitcast(number, threads.i32()) for number in numbers]
    # Both words' upper halves.
    result.append([utils.prmt(*pair, threads.constant(0x7632)) for pair in zip(words[::2], words[1::2])])
    above = [utils.bitcast(arith.andi(word, threads.constant(0xFFFF0000)), ir.F32Type.get()) for word in words]
    numbers = [arith.subf(*both) for both in zip(numbers, above)]
  return [*result, [token_arithmetic.rounded(jnp.bfloat16, *pair) for pair in zip(numbers[::2], numbers[1::2])]]


def _sums(numbers, distance: int):
  """Sums and differences of numbers `distance` apart."""
  result = list(numbers)
  for i in range(len(numbers)):
    if not i & distance:
      low, high = numbers[i], numbers[i + distance]
      result[i], result[i + distance] = arith.addf(low, high), arith.subf(low, high)
  return result


def _transposed(count: int, size: int, scratch, distances, width: int):
  """The rounds across warps: each takes one of four loads of all warps, whose bits and those of the warp change places.

  Args:
    count: numbers of a thread, of whole runs of four loads.
    size: numbers that are read at once.
    scratch: shared memory that has those of all threads.
    distances: of threads.
    width: numbers of a load.
  """
  lane, warp = (operation(threads.number(), threads.constant(value))
                for operation, value in ((arith.remui, threads.LANES), (arith.divui, threads.LANES)))
  # A load's numbers lie as if they were those of so many other threads.
  source = arith.addi(lane, arith.muli(warp, threads.constant(width // size * threads.WARPGROUP)))
  result = [None] * count
  for run, place in itertools.product(range(0, count, threads.WARPS * width), range(0, width, size)):
    loaded = [number for other in range(threads.WARPS) for number in thread_memory.load(
        scratch, arith.addi(source, threads.constant(other * threads.LANES)), run + place, size)]
    for distance in distances:
      loaded = _sums(loaded, distance // threads.LANES * size)
    for other in range(threads.WARPS):
      first = run + other * width + place
      result[first : first + size] = loaded[other * size : (other + 1) * size]
  return result


def _across_warps(numbers, size: int, scratch, distances):
  """The rounds across warps where no thread has four loads: each reads what it adds of all warps."""
  thread = threads.number()
  signs = [_sign(thread, distance) for distance in distances]
  combine = lambda mine, yours, sign: [math.fma(a, sign, b) for a, b in zip(mine, yours)]
  other = lambda of, distance: arith.xori(of, threads.constant(distance))
  result = []
  for first in range(0, len(numbers), size):
    read = lambda of_thread, first=first: thread_memory.load(scratch, of_thread, first, size)
    mine = combine(numbers[first : first + size], read(other(thread, distances[0])), signs[0])
    if len(distances) > 1:
      far = other(thread, distances[1])
      mine = combine(mine, combine(read(far), read(other(far, distances[0])), signs[0]), signs[1])
    result += mine
  return result


def _sign(thread, distance: int):
  """-1.0 where the thread is the upper one of two that are `distance` apart, else 1.0."""
  upper = arith.cmpi(arith.CmpIPredicate.ne, arith.andi(thread, threads.constant(distance)), threads.constant(0))
  return arith.select(upper, _number(-1.0), _number(1.0))


def _number(value: float):
  return mgpu.c(value, ir.F32Type.get())
