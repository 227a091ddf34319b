"""Ranges of activations that are known before these are: calibrated, or learned with the model."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from kernels import checks


# The scalars of a range among other operands.
NAMES = ('range_scale', 'range_offset')


class StaticRange(NamedTuple):
  """A range that is known: value = scale * code + offset, codes from -2^(bits-1) to 2^(bits-1) - 1.

  Attributes:
    scale: float32 scalar, positive.
    offset: float32 scalar, or None for zero.
  """

  scale: Any
  offset: Any = None


def named(static: StaticRange | None) -> dict[str, Any]:
  """The scalars of a range, or None for those that there are not, by names among other operands."""
  return dict(zip(NAMES, (None, None) if static is None else static))


def ends(static: StaticRange | None) -> list[Any]:
  """The scale and the offset, as far as there are, as float32 [1]."""
  return [end.reshape(1) for end in static or () if end is not None]


def check(static) -> None:
  """Raises `ValueError` for what is no static range."""
  if not isinstance(static, StaticRange):
    raise ValueError(f'a static range is a kernels.StaticRange, not a {type(static).__name__}')
  checks.arrays('offset', scale=static.scale, offset=static.offset)
  for end in static[: 1 if static.offset is None else 2]:
    if end is None or end.shape or end.dtype != jnp.float32:
      raise ValueError('a static range has a scalar scale and a scalar offset of float32')


def codes(x, static: StaticRange, bits: int):
  """The codes of floating x, int8, by a division; one on an edge may be the neighbor of what a quantizer makes."""
  x = x.astype(jnp.float32)
  steps = (x if static.offset is None else x - static.offset) / static.scale
  most = 2 ** (bits - 1) - 1
  return jnp.clip(jnp.round(steps), -most - 1, most).astype(jnp.int8)
