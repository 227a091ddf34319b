"""Memory filled with what no result is, so that a part of a result which nothing writes is seen."""

from collections.abc import Callable
import math
from typing import Any

import jax
import jax.numpy as jnp

from kernels import layouts
from kernels.mosaic import calls


def poisoned(call: Callable[..., Any], *operands: Any) -> Any:
  """Returns call(*operands), before which memory was filled and given back: NaN, or the middle of negative integers.

  Args:
    call: what `jax.jit` returns; it is compiled first, which takes memory, too.
    *operands: its arguments.
  """
  compiled = call.lower(*operands).compile()
  filled = []
  for result in jax.tree.leaves(jax.eval_shape(call, *operands)):
    for shape in (result.shape, _whole_tiles(result.shape)):
      value = jnp.nan if jnp.issubdtype(result.dtype, jnp.floating) else jnp.iinfo(result.dtype).min // 2
      filled += [jnp.full(shape, value, result.dtype) for _ in range(4)]
  jax.block_until_ready(filled)
  del filled
  return compiled(*operands)


def _whole_tiles(shape: tuple[int, ...]) -> tuple[int, ...]:
  """The shape that a kernel writes where its result is a part of whole tiles."""
  if not shape:
    return ()
  *tokens, outputs = shape
  return calls.whole_rows(math.prod(tokens)), layouts.padded(outputs)
