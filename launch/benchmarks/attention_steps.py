"""Steps of decoding's attention to be timed: their operands, programs and times."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import kernels
from launch.benchmarks import kernel_programs
from launch.benchmarks import kernel_timing

_DIM, _DTYPE = 128, jnp.bfloat16


class Step(NamedTuple):
  """A token of every row, which attends to all slots of its row.

  Attributes:
    heads, kv_heads: of queries, and of keys and values; heads of 128 features.
    rows: of the batch.
    slots: of a row in the cache.
    codes: whether the cache holds codes of 8 bits.
  """

  heads: int
  kv_heads: int
  rows: int
  slots: int
  codes: bool = False

  @property
  def operands(self) -> dict[str, Any]:
    """Shapes and dtypes of the arguments of `kernels.decode_attention`, by name."""
    of = jax.ShapeDtypeStruct
    of_slots = self.rows, self.kv_heads, self.slots
    numbers = of((*of_slots, _DIM), jnp.int8 if self.codes else _DTYPE)
    scales = (of(of_slots, jnp.float32),) * 2 if self.codes else ()
    return dict(qkv=of((self.rows, self.heads + 2 * self.kv_heads, _DIM), _DTYPE),
                cache=kernels.Cache(numbers, numbers, *scales), positions=of((self.rows,), jnp.int32),
                angles=(of((self.rows, _DIM // 2), jnp.float32),) * 2)

  @property
  def bytes(self) -> int:
    """Bytes of all of them."""
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(self.operands))

  def lowered(self, implementation: str):
    """The program, which writes into the cache that it is given."""
    def attend(rest, cache):
      return kernels.decode_attention(**rest, cache=cache, implementation=implementation)

    rest = self.operands
    cache = rest.pop('cache')
    return jax.jit(attend, donate_argnums=1).lower(rest, cache)

  def measured(self, program: Callable[[], Callable[..., Any]], repetitions: int) -> dict[str, Any]:
    """The `seconds` of a step, or the `error` that stands in its way.

    Args:
      program: gives the compiled program, or raises what lowering or compiling it raised.
      repetitions: of which the median counts.
    """
    rest = jax.tree.map(lambda a: jnp.ones(a.shape, a.dtype), self.operands)
    rest['positions'] = jnp.full((self.rows,), self.slots - 1, jnp.int32)
    first = rest.pop('cache')
    size = sum(array.nbytes for array in jax.tree.leaves(first))
    caches = [jax.tree.map(lambda array: array + 0, first) for _ in range(kernel_timing.copies(size))]

    def step(index):
      mixed, caches[index] = compiled(rest, caches[index])
      return mixed

    try:
      compiled = program()
      return {'seconds': kernel_timing.seconds(
          [functools.partial(step, index) for index in range(len(caches))], repetitions)}
    except (NotImplementedError, ValueError, RuntimeError) as error:
      return kernel_programs.failure(error)
