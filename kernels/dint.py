"""The integers that codes of dINT stand for (arXiv:2311.05161, section 4).

Codes 0 .. 13 are a uniform grid with a zero point, 14 and 15 the values +c and -c, c = special * step, whatever the
zero point. Every value is an integer times c: (code - zero point) / special on the grid, and 1 or -1. Codes of three
bits, 0 .. 5 with 6 and 7 for +c and -c, become these by `widened`.
"""

import jax.numpy as jnp

PLUS, MINUS = 14, 15
SPECIALS = (1 / 2, 1 / 4, 1 / 8)


def per_step(special: float) -> int:
  """The integer of one step: 2, 4 or 8."""
  return round(1 / special)


def widened(codes, plus: int):
  """Codes whose two special ones are `plus` and `plus` + 1, with 14 and 15 in their place; int8."""
  return jnp.where(codes >= plus, codes + (PLUS - plus), codes).astype(jnp.int8)


def integers(codes, zero_point, special: float):
  """The integers int8 [K, N] that codes stand for.

  Args:
    codes: int8 [K, N], from 0 to 15.
    zero_point: int32 [W, N], W groups along K, from 0 to 13.
    special: c over the step, one of `SPECIALS`.
  """
  steps = codes - jnp.repeat(zero_point.astype(jnp.int8), len(codes) // len(zero_point), axis=0)
  return jnp.where(codes == PLUS, 1, jnp.where(codes == MINUS, -1, per_step(special) * steps)).astype(jnp.int8)
