"""Quantization of activations, per token or on a static range, with what may stand before it and what products need.

Codes of 4 bits may be packed, two in a byte, the one of the lower feature in the low nibble. That is the order of a
checkpoint and the one in which XLA stores int4, so that `unpack`, or what XLA fuses with it, reads them as they are. A
matrix instruction of 8-bit operands wants a byte a code, so that products take them unpacked.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kernels import before as preceding
from kernels import checks
from kernels import dispatch
from kernels import gates
from kernels import static_ranges
from kernels.mosaic import activations as mosaic

_TINY = float(jnp.finfo(jnp.float32).tiny)


class QuantizedActivations(NamedTuple):
  """value = scale * code + offset.

  Attributes:
    codes: int8 [..., K], or packed [..., K / 2].
    scale: float32 [..., 1]; that of a static range is the scalar that was given.
    offset: like the scale, or None where it is zero.
    row_sums: int32 [..., G], sums of the codes of each group.
    total: the activation with what was added to it, [..., K] in its dtype, or None where nothing was.
  """

  codes: Any
  scale: Any
  offset: Any
  row_sums: Any
  total: Any = None


def quantize_activations(
    x, *, bits: int = 8, symmetric: bool = True, before: preceding.Before = preceding.Before(),
    static: static_ranges.StaticRange | None = None, group_size: int | None = None, packed: bool = False, addend=None,
    implementation=None,
):  # pyformat: disable
  """Codes of every token, on a range of its own, which contains zero, or on a static one.

  Args:
    x: floating [..., K], or with a gate [..., 2 * K] in pairs of runs (gates.paired).
    bits: of the codes, 2 to 8.
    symmetric: codes of +-(2^(bits-1) - 1), scale * code; else all 2^bits codes, from -2^(bits-1) on, with an offset
      that makes zero a value. A token of zeros has scale 1. Without meaning for a static range.
    before: what happens to the activation first.
    static: the range for all tokens, or None for one each.
    group_size: features of a group of `row_sums`, as the scales of weights group them; None: all.
    packed: two codes of at most 4 bits a byte, code 2 i in the low nibble of byte i.
    addend: like x, added to it before all else, without a gate, or None.
    implementation: `xla`, the codes of the model's quantizers; `mosaic_gpu`, one read and one write of memory, which
      multiplies by inverses of scales where `xla` divides, so that a code on an edge may be its neighbor; None:
      the fastest that takes the problem on this device.

  Returns:
    `QuantizedActivations`.

  Raises:
    ValueError: vectors, blocks, groups or an addend that do not fit, an activation without features or that is not
      floating, a static range of anything but scalars, or an unknown norm, gate or implementation.
    NotImplementedError: the implementation that was asked for does not take this problem, or not on this device.
  """
  checks.implementation(implementation, _FUNCTIONS)
  checks.arrays(x=x)
  if not x.ndim or not jnp.issubdtype(x.dtype, jnp.floating) or not x.shape[-1]:
    raise ValueError(f'activations must be floating [..., K] of at least one feature, not {x.dtype} {list(x.shape)}')
  features = preceding.features(before, x.shape[-1])
  preceding.check(before, features)
  checks.arrays('addend', addend=addend)
  if addend is not None and (before.gate or addend.shape != x.shape or addend.dtype != x.dtype):
    raise ValueError(f'{addend.dtype} {list(addend.shape)} is not added to {x.dtype} {list(x.shape)}'
                     + ' behind a gate' * bool(before.gate))
  checks.bits('bits', bits, 8, least=2)
  if packed and (bits > 4 or features % 2):
    raise ValueError(f'an even number of codes of at most 4 bits is packed, not {features} of {bits} bits')
  if group_size is not None and (not checks.integral(group_size) or group_size < 1 or features % group_size):
    raise ValueError(f'groups of {group_size} do not divide {features} features')
  if static is not None:
    static_ranges.check(static)
  arguments = dict(x=x, bits=bits, symmetric=symmetric, before=before, static=static, addend=addend,
                   group_size=group_size or features, packed=packed)
  problem = f'{x.dtype} activations {list(x.shape)} to {bits} bits'
  codes, scale, offset, row_sums, total = dispatch.call(_FUNCTIONS, implementation, arguments, problem)
  return QuantizedActivations(codes, *((scale, offset) if static is None else static), row_sums, total)


def unpack(codes):
  """Codes int8 [..., K] of packed ones, int8 [..., K / 2]."""
  *tokens, pairs = codes.shape
  return jax.lax.bitcast_convert_type(codes, jnp.int4).reshape(*tokens, 2 * pairs).astype(jnp.int8)


def pack(codes):
  """Packed codes int8 [..., K / 2] of codes of at most 4 bits, int8 [..., K]."""
  *tokens, features = codes.shape
  low, high = jnp.unstack(codes.reshape(*tokens, features // 2, 2), axis=-1)
  return (low & 15) | (high << 4)


def _xla(x, *, bits, symmetric, before, static, group_size, packed, addend):
  """Divides as `DynamicQuantizer` does, so that the codes are the same to the last one."""
  if addend is not None:
    x = preceding.narrow(x.astype(jnp.float32) + addend.astype(jnp.float32), x.dtype)
  total = None if addend is None else x
  x = gates.halves(x) if before.gate else x
  x = preceding.apply(x, before).astype(jnp.float32)
  scale = offset = None
  most = 2 ** (bits - 1) - 1
  if static is not None:
    codes = static_ranges.codes(x, static, bits)
  elif symmetric:
    top = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    scale = _scale(top, top / most)
    codes = jnp.clip(jnp.round(x / scale), -most, most)
  else:
    low, high = (f(x, axis=-1, keepdims=True) for f in (jnp.min, jnp.max))
    low, high = jnp.minimum(low, 0.0), jnp.maximum(high, 0.0)
    scale = _scale(high - low, (high / 2 - low / 2) / (most + 0.5))
    zero_point = jnp.round(-low / scale)
    codes = jnp.clip(jnp.round(x / scale) + zero_point, 0, 2 * most + 1) - (most + 1)
    offset = scale * (most + 1 - zero_point)
  codes = codes.astype(jnp.int8)
  *tokens, features = x.shape
  row_sums = jnp.sum(codes.reshape(*tokens, features // group_size, group_size), axis=-1, dtype=jnp.int32)
  return pack(codes) if packed else codes, scale, offset, row_sums, total


def _scale(width, scale):
  """The scale of a range; that of an empty one is 1, so that zeros stay exactly zero."""
  return jnp.where(width == 0, 1.0, jnp.maximum(scale, _TINY))


_FUNCTIONS = {'xla': _xla, 'mosaic_gpu': mosaic.quantize}
