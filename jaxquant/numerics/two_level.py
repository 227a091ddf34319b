"""Two-level scales of groups (QServe, arXiv:2405.04532; LiquidGEMM, arXiv:2509.01229), written as one level.

The scale of a group is a float32 of its output times an integer of the group from 1 to `MOST`:

  scale[g, n] = base[n] * multiplier[g, n]

A product with codes of at most 4 bits then is one sum over all inputs of the integers multiplier * code, which 8 bits
hold, and one multiplication by the base. A base has 16 significant bits, so that its multiples are exact in float32: a
QTensor holds them as scales like any others, and nothing but what seeks them (`levels`) has to know.
"""

import jax
import jax.numpy as jnp
import numpy as np

# The largest multiplier: 15 * -8 = -120 is an integer of 8 bits.
MOST = 15
_TINY = float(np.finfo(np.float32).tiny)
_EXPONENT_BITS, _MANTISSA_BITS = 8, 15


def snapped(scale, used):
  """The two-level scales nearest to given ones.

  The base is a fifteenth of the output's largest scale, and the multiplier of every group the nearest integer, at least
  1. A scale that falls short, by half a base at most, clips its group's largest values. Of Gaussian weights, int4 in 32
  groups of 128, the mean squared error of rounding rises by 0.4 %; multipliers that are rounded up clip nothing, and
  raise it by 9.8 %.

  Args:
    scale: float32 [groups, outputs], positive.
    used: bool like the scale, whether a group holds anything but zeros; others take no part in the base.

  Returns:
    float32 like the scale. Two-level scales come back as they are, if the largest is 15 times the base, as those of
    this function are but next to the smallest normal number. Where no group of an output is used, scales are 1.
  """
  largest = jnp.max(jnp.where(used, scale, 0.0), axis=-2, keepdims=True)
  largest = jnp.where(largest == 0, float(MOST), largest)
  base = jnp.maximum(jax.lax.reduce_precision(largest / MOST, _EXPONENT_BITS, _MANTISSA_BITS), _TINY)
  scale = jnp.where(used, scale, 0.0)
  # Exact comparisons decide, so that it does not matter how the quotient was rounded.
  below = jnp.clip(jnp.floor(scale / base), 1, MOST - 1)
  return base * (below + (scale > base * (below + 0.5)))


def levels(scale) -> tuple[np.ndarray, np.ndarray] | None:
  """The levels of scales that are two-level ones, exactly; None for others.

  Args:
    scale: concrete float32 [groups, outputs].

  Returns:
    (base, multiplier): float32 [1, outputs] and int32 [groups, outputs] from 1 to `MOST`, whose product is the scale.
  """
  values = np.asarray(scale, np.float64)
  if not np.all((values > 0) & (values < np.inf)) or _bases(values[:, :1]) is None:  # one output tells most at once
    return None
  base = _bases(values)
  return None if base is None else (np.float32(base), np.rint(values / base).astype(np.int32))


def _bases(values: np.ndarray) -> np.ndarray | None:
  """Bases [1, outputs] of positive scales; None where an output has none. Products with them are exact in float64."""
  found, left = np.empty((1, values.shape[1])), np.arange(values.shape[1])
  for most in range(MOST, 0, -1):
    rest = values[:, left]
    base = np.float64(np.float32(rest.max(axis=0) / most))
    fits = (base > 0) & np.all(base * np.rint(rest / np.maximum(base, _TINY)) == rest, axis=0)
    found[0, left[fits]] = base[fits]
    left = left[~fits]
  return None if len(left) else found
