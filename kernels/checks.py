"""Refusals that the public functions share: what is no array, no implementation, no dtype, no width of codes."""

from collections.abc import Collection
import numbers
from typing import Any

import jax
import jax.numpy as jnp

# Of sums: what is checked against it never wraps around.
LARGEST_INT32 = 2**31 - 1


def arrays(*optional: str, **named: Any) -> None:
  """Raises `ValueError` for an operand without a shape and a dtype; those that are `optional` may be None."""
  for name, value in named.items():
    missing = value is None and name in optional
    if not missing and not (hasattr(value, 'shape') and hasattr(value, 'dtype')):
      raise ValueError(f'{name} must be an array, not a {type(value).__name__}')


def implementation(value: Any, known: Collection[str]) -> None:
  """Raises `ValueError` for an implementation that is neither one of those that are `known` nor None."""
  if value is not None and (not isinstance(value, str) or value not in known):
    raise ValueError(f'unknown implementation {value!r}; there are {", ".join(known)}')


def out_dtype(value: Any) -> jnp.dtype:
  """The dtype of a result; raises `ValueError` for one that is not floating: integers would be cut off."""
  try:
    dtype = None if value is None else jnp.dtype(value)
  except TypeError:
    dtype = None
  if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
    raise ValueError(f'out_dtype must be a floating dtype, not {value!r}')
  return dtype


def integral(value: Any) -> bool:
  """Whether a value is an integer, of Python or NumPy."""
  return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def bits(name: str, value: Any, most: int, least: int = 1) -> None:
  """Raises `ValueError` unless the number of bits `value` is an integer from `least` to `most`."""
  if not integral(value) or not least <= value <= most:
    raise ValueError(f'{name} must be an integer from {least} to {most} here, not {value!r}')


def within(name: str, integers: Any, least: int, most: int) -> None:
  """Raises `ValueError` for integers beyond these, which would wrap around; those that are not here yet pass."""
  if isinstance(integers, jax.core.Tracer) or not getattr(integers, 'is_fully_addressable', True) or not integers.size:
    return
  with jax.ensure_compile_time_eval():
    ends = int(jnp.min(integers)), int(jnp.max(integers))
  if beyond := [end for end in ends if not least <= end <= most]:
    raise ValueError(f'{name} goes from {least} to {most}, and one is {beyond[0]}')


def bias(value: Any, outputs: int) -> None:
  """Raises `ValueError` unless the bias `value` is floating [outputs] or None."""
  if value is not None and (value.shape != (outputs,) or not jnp.issubdtype(value.dtype, jnp.floating)):
    raise ValueError(f'bias of shape {value.shape} and dtype {value.dtype} does not fit {outputs} outputs')
