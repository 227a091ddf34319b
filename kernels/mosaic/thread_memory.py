"""Numbers of a warpgroup's threads in shared memory, as registers have them: each thread finds its own again.

So many of a thread lie side by side, and those of its neighbors beside them, so that none meets another in a bank.
"""

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith
from jax.extend.mlir.dialects import vector

from kernels.mosaic import threads

# Numbers of 32 bits that a thread stores, sends or loads at once, if there are so many.
QUAD = 4


def store(numbers, size: int, ref, thread) -> None:
  """Writes the numbers of a thread to a reference to shared memory, `size` at a time."""
  for first in range(0, len(numbers), size):
    vector.store(vector.from_elements(_kind(ref, size), numbers[first : first + size]), ref,
                 [threads.index(place(thread, first, size))])


def load(ref, thread, first: int, size: int, *rows):
  """`size` numbers from a thread's number `first` on, that `store` has written so to these rows of a reference."""
  loaded = vector.load(_kind(ref, size), ref, [*rows, threads.index(place(thread, first, size))])
  return threads.elements([loaded])


def place(thread, first: int, size: int):
  """Where `size` of a thread's numbers lie, from `first` on, a word."""
  return arith.muli(arith.addi(thread, threads.constant(first // size * threads.WARPGROUP)), threads.constant(size))


def _kind(ref, size: int):
  return ir.VectorType.get((size,), ir.MemRefType(ref.type).element_type)
