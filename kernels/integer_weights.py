"""Integers that codes of weights stand for: the codes themselves, or what they become with integers of their group.

  zero points  of dINT codes in the layout DINT4 (kernels.dint), of the groups that the scales have
  multipliers  second-level scales (QServe, arXiv:2405.04532; LiquidGEMM, arXiv:2509.01229): a group's scale is a
               float32 of the output times an integer of the group, and integer = multiplier * code. Products then are
               one sum of integers over all inputs, and groups add no arithmetic in float32

Two such numbers beside one code would be too many: a problem has zero points, multipliers or neither.
"""

import jax.numpy as jnp

from kernels import checks
from kernels import dint
from kernels import layouts

# The largest multiplier of codes of at most 4 bits: 15 * -8 = -120 is an integer of 8 bits.
MOST = 15
_BITS = 4


def bits(w_bits: int, multiplier) -> int:
  """Bits of the integers of weights, where `w_bits` are those of codes that multipliers, if any, multiply."""
  return w_bits if multiplier is None else 8


def integers(weights, layout: layouts.Layout, size: tuple[int, int], zero_point=None, special: float = 1 / 2,
             multiplier=None):
  """The integers [K, N] that weights in any layout stand for; `size` is (K, N).

  Args:
    weights: as `layouts.prepack` returns them.
    layout: of the weights.
    size: (K, N).
    zero_point: int32 [W, N], W groups along K, from 0 to 13; with DINT4 alone.
    special: with DINT4, the magnitude of special values in steps, one of dint.SPECIALS.
    multiplier: int32 [W, N], W groups along K, from 1 to `MOST`, or None for codes that are the integers.
  """
  codes = layouts.unpack(weights, layout, size)
  if layout is layouts.Layout.DINT4:
    return dint.integers(codes, zero_point, special)
  if multiplier is None:
    return codes
  return codes * jnp.repeat(multiplier.astype(codes.dtype), size[0] // len(multiplier), axis=0)


def check(w_scale, w_offset, inputs: int, outputs: int, layout: layouts.Layout, w_bits: int, zero_point, special: float,
          multiplier) -> None:
  """Raises `ValueError` for zero points or multipliers that do not fit weights of [inputs, outputs]."""
  if (layout is layouts.Layout.DINT4) != (zero_point is not None):
    raise ValueError('there is no w_zero_point, which the layout dint4 needs' if zero_point is None else
                     f'w_zero_point belongs to the layout dint4, not to {layout.value}')
  if zero_point is not None:
    if zero_point.shape != w_scale.shape or zero_point.dtype != jnp.int32:
      raise ValueError(f'w_zero_point must be int32 {list(w_scale.shape)} like w_scale, not {zero_point.dtype} '
                       f'{list(zero_point.shape)}')
    checks.within('w_zero_point', zero_point, 0, dint.PLUS - 1)
    if special not in dint.SPECIALS:
      raise ValueError(f'w_special must be 1/2, 1/4 or 1/8 of a step, not {special}')
    if w_offset is not None:
      raise ValueError('the layout dint4 takes w_zero_point instead of w_offset')
  if multiplier is not None:
    if layout not in (layouts.Layout.CODES, layouts.Layout.INT4) or w_bits > _BITS:
      raise ValueError(f'w_multiplier belongs to codes of at most {_BITS} bits in the layouts codes and int4, not to '
                       f'{w_bits} bits in the layout {layout.value}')
    fits = multiplier.ndim == 2 and multiplier.shape[1] == outputs and len(multiplier) and inputs % len(multiplier) == 0
    if not fits or multiplier.dtype != jnp.int32:
      raise ValueError(f'w_multiplier must be int32 [W, {outputs}] for W groups of {inputs} inputs, not '
                       f'{multiplier.dtype} {list(multiplier.shape)}')
    checks.within('w_multiplier', multiplier, 1, MOST)
    if len(w_scale) != 1 or w_offset is not None:
      raise ValueError(f'w_multiplier takes one w_scale an output, not {len(w_scale)}, and no w_offset')

