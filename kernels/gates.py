"""Gates: a nonlinearity of some features times as many others, with which they take turns.

Runs of `RUN` features of the gate and of the others alternate. So a thread that has sums of a product has both numbers
of a pair, whatever the tile, and one that reads an activation finds them close to each other.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# Features of one kind next to each other: half of the rows of a warp's part of a matrix instruction.
RUN = 8
# Nonlinearities of float32 numbers, of operations that every implementation has; `rounded` takes what a model has as an
# array by itself to its dtype and back.
GATES = {'silu': lambda x, rounded, logistic: rounded(x * rounded(logistic(x)))}


def check(gate: str | None, features: int) -> None:
  """Raises `ValueError` for no gate that there is, or features of which there are no pairs for one."""
  if gate not in (None, *GATES):
    raise ValueError(f'unknown gate {gate!r}; there is {" and ".join(GATES)}')
  if gate and features % (2 * RUN):
    raise ValueError(f'a gate takes features in pairs of runs of {RUN}, not {features} of them')


def paired(gate, others, axis: int = -1):
  """The array in which runs of two of the same shape, whose `axis` is a multiple of `RUN`, take turns."""
  axis %= gate.ndim
  runs = [a.reshape(*a.shape[:axis], a.shape[axis] // RUN, RUN, *a.shape[axis + 1 :]) for a in (gate, others)]
  return jnp.stack(runs, axis + 1).reshape(*gate.shape[:axis], 2 * gate.shape[axis], *gate.shape[axis + 1 :])


def halves(x, axis: int = -1):
  """(gate, others): the inverse of `paired`."""
  axis %= x.ndim
  before, size, behind = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
  runs = x.reshape(*before, size // (2 * RUN), 2, RUN, *behind)
  return tuple(a.reshape(*before, size // 2, *behind) for a in jnp.unstack(runs, axis=axis + 1))


def apply(
    gate: str, x, others, narrow: Callable[[Any, Any], Any], logistic: Callable[[Any], Any] = jax.lax.logistic,
    wide: Callable[[Any], Any] = lambda a: a.astype(jnp.float32)):
  """The product in the dtype of the operands, each step rounded as a model has it, which multiplies arrays.

  Args:
    gate: one of `GATES`.
    x, others: of one floating dtype.
    narrow: (float32 value, dtype) -> the value in the dtype, rounded.
    logistic: of float32 numbers.
    wide: (floating value) -> float32.
  """
  rounded = lambda value: wide(narrow(value, others.dtype))
  return narrow(GATES[gate](wide(x), rounded, logistic) * wide(others), others.dtype)
