"""Refusals that the public functions share: what is no array, no layout, no width of codes."""

from typing import Any

import jax.numpy as jnp

from kernels import prepack

# Of sums: what is checked against it never wraps around.
LARGEST_INT32 = 2**31 - 1


def check_arrays(**named: Any) -> None:
  """Raises `ValueError` for an operand that is neither an array, or what has a shape and a dtype like one, nor None."""
  for name, value in named.items():
    if value is not None and not (hasattr(value, 'shape') and hasattr(value, 'dtype')):
      raise ValueError(f'{name} must be an array, not a {type(value).__name__}')


def check_layout(layout: Any) -> None:
  """Raises `ValueError` for what is no `prepack.Layout`."""
  if not isinstance(layout, prepack.Layout):
    raise ValueError(f'the layout must be a kernels.Layout, not {layout!r}')


def check_bits(name: str, bits: Any, most: int, least: int = 1) -> None:
  """Raises `ValueError` unless `bits` is an integer from `least` to `most`."""
  if not isinstance(bits, int) or not least <= bits <= most:
    raise ValueError(f'{name} must be an integer from {least} to {most} here, not {bits!r}')


def check_bias(bias: Any, outputs: int) -> None:
  """Raises `ValueError` unless the bias is floating [outputs] or None."""
  if bias is not None and (bias.shape != (outputs,) or not jnp.issubdtype(bias.dtype, jnp.floating)):
    raise ValueError(f'bias of shape {bias.shape} and dtype {bias.dtype} does not fit {outputs} outputs')
