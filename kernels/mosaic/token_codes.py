"""Codes of a token's numbers.

So that arithmetic does not limit, a code takes few instructions: a multiplication and the addition of `_ROUNDS`, next
to which numbers of float32 are integers, round it, and it is read off the lowest bits.
"""

from jax import lax
import jax.numpy as jnp

# 1.5 * 2^23: its sum with a number below 2^22 is rounded to an integer, to even at ties, and holds it in its low bits.
_ROUNDS = 12_582_912.0
_ROUNDS_BITS = 0x4B400000
_TINY = float(jnp.finfo(jnp.float32).tiny)


def _rounded(values):
  """int32 of the bits of float32 numbers that were added to `_ROUNDS`: the integers, and `_ROUNDS_BITS` more."""
  return lax.bitcast_convert_type(values, jnp.int32)


def symmetric(x, bits, top):
  """(codes + bias int32, bias, scale) of float32, of the largest magnitude; so no code is too large."""
  largest = 2 ** (bits - 1) - 1
  scale = jnp.where(top == 0, 1.0, jnp.maximum(top / largest, _TINY))
  return _rounded(x * (1 / scale) + _ROUNDS), _ROUNDS_BITS, scale


def affine(x, bits, low, high):
  """(codes int32, bias, scale, offset) of float32, of the least number and the largest."""
  low, high = jnp.minimum(low, 0.0), jnp.maximum(high, 0.0)
  shift = 2 ** (bits - 1)
  scale = jnp.where(high == low, 1.0, jnp.maximum((high / 2 - low / 2) / (shift - 0.5), _TINY))
  zero_point = jnp.round(-low / scale)
  codes = _rounded(x * (1 / scale) + _ROUNDS) + (
      zero_point.astype(jnp.int32) - (shift + _ROUNDS_BITS))
  # Both ends of a range may be rounded outwards, so that there is one code too many.
  return jnp.clip(codes, -shift, shift - 1), 0, scale, scale * (shift - zero_point)


def static(x, bits, scale, offset=None):
  """(codes + bias int32, bias) of float32."""
  return _rounded(_steps(x, bits, scale, offset) + _ROUNDS), _ROUNDS_BITS


def _steps(x, bits, scale, offset=None):
  """Steps of a static range from its code of zero, float32, within the codes."""
  x = (x if offset is None else x - offset) * (1 / scale)
  least = -(2 ** (bits - 1))
  return jnp.clip(x, float(least), float(-1 - least))


def coded(values, behind, ends):
  """What becomes of a result in registers: its codes, int8, if it has a static range (kernels.behind).

  Args:
    values: floating.
    behind: a `Behind`, whose arrays are not read.
    ends: scalars, the scale of the range and its offset, if it has one.
  """
  if behind.static is None:
    return values
  # Not by `_rounded`: single bytes of a float were stored as if it were to be converted to one (ptxas of CUDA 13).
  return jnp.round(_steps(values.astype(jnp.float32), behind.bits, *ends)).astype(jnp.int32).astype(jnp.int8)
