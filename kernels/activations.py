"""Per-token quantization of activations, with what may stand before it: a norm, a shift and a scale of channels.

A static range needs no statistic of the activation: its quantization is elementwise, and XLA fuses it into whatever
makes the activation.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kernels import dispatch
from kernels.mosaic import activations as mosaic

_TINY = float(jnp.finfo(jnp.float32).tiny)


class QuantizedActivations(NamedTuple):
  """value = scale * code + offset.

  Attributes:
    codes: int8 [..., K].
    scale: float32 [..., 1].
    offset: float32 [..., 1], or None for symmetric codes.
    row_sums: int32 [..., 1], sums of the codes.
  """

  codes: Any
  scale: Any
  offset: Any
  row_sums: Any


class Before(NamedTuple):
  """What happens to an activation first: a norm, then (x - shift) / scale, each rounded to the activation's dtype.

  Attributes:
    norm: `rms`, `layer` or None.
    gain: float32 [K], which multiplies the normalized activation.
    bias: float32 [K], added to it, or None.
    epsilon: added to the mean square, or to the variance.
    shift, scale: float32 [K], or None.
  """

  norm: str | None = None
  gain: Any = None
  bias: Any = None
  epsilon: float = 1e-6
  shift: Any = None
  scale: Any = None


def quantize_activations(
    x, *, bits: int = 8, symmetric: bool = True, before: Before = Before(), implementation='xla'):
  """Codes of every token on a range of its own, which contains zero.

  Args:
    x: floating [..., K].
    bits: of the codes, 2 to 8.
    symmetric: codes of +-(2^(bits-1) - 1), scale * code; else all 2^bits codes, from -2^(bits-1) on, with an offset
      that makes zero a value. A token of zeros has scale 1.
    before: what happens to the activation first.
    implementation: `xla`, `mosaic_gpu`, or None for the fastest that takes the problem on this device.

  Returns:
    `QuantizedActivations`.

  Raises:
    ValueError: vectors that do not fit, or an unknown norm or implementation.
    NotImplementedError: the implementation that was asked for does not take this problem, or not on this device.
  """
  if implementation is not None and implementation not in _FUNCTIONS:
    raise ValueError(f'unknown implementation {implementation!r}; there are {", ".join(_FUNCTIONS)}')
  if before.norm not in (None, 'rms', 'layer'):
    raise ValueError(f'unknown norm {before.norm!r}; there are rms and layer')
  for name in ('gain', 'bias', 'shift', 'scale'):
    vector = getattr(before, name)
    if vector is not None and vector.shape != x.shape[-1:]:
      raise ValueError(f'{name} of shape {vector.shape} does not fit activations of shape {x.shape}')
  if not 2 <= bits <= 8:
    raise ValueError(f'codes have 2 to 8 bits, not {bits}')
  arguments = dict(x=x, bits=bits, symmetric=symmetric, before=before)
  problem = f'{x.dtype} activations {list(x.shape)} to {bits} bits'
  return QuantizedActivations(*dispatch.call(_FUNCTIONS, implementation, arguments, problem))


def codes_of(x, *, bits: int, symmetric: bool, before: Before):
  """(codes float32, scale, offset) of tokens [..., K]: the arithmetic that every implementation runs."""
  dtype, x = x.dtype, x.astype(jnp.float32)
  rounded = lambda a: a.astype(dtype).astype(jnp.float32)
  if before.norm:
    if before.norm == 'layer':
      x = x - _mean(x)
    x = x * jax.lax.rsqrt(_mean(x * x) + before.epsilon)
    x = x if before.gain is None else x * before.gain
    x = rounded(x if before.bias is None else x + before.bias)
  if before.shift is not None:
    x = rounded(x - before.shift)
  if before.scale is not None:
    x = rounded(x / before.scale)
  largest = 2 ** (bits - 1) - 1
  if symmetric:
    top = jnp.max(jnp.abs(x), axis=-1, keepdims=x.ndim > 1)
    scale = _scale(top, top / largest)
    return jnp.clip(jnp.round(x / scale), -largest, largest), scale, None
  low, high = (f(x, axis=-1, keepdims=x.ndim > 1) for f in (jnp.min, jnp.max))
  low, high = jnp.minimum(low, 0.0), jnp.maximum(high, 0.0)
  scale = _scale(high - low, (high / 2 - low / 2) / ((2**bits - 1) / 2))
  zero_point = jnp.round(-low / scale)
  shift = 2 ** (bits - 1)
  codes = jnp.clip(jnp.round(x / scale) + zero_point, 0, 2**bits - 1) - shift
  return codes, scale, scale * (shift - zero_point)


def _mean(x):
  return jnp.sum(x, axis=-1, keepdims=x.ndim > 1) / x.shape[-1]


def _scale(width, scale):
  """The scale of a range; that of an empty one is 1, so that zeros stay exactly zero."""
  return jnp.where(width == 0, 1.0, jnp.maximum(scale, _TINY))


def _xla(x, *, bits, symmetric, before):
  codes, scale, offset = codes_of(x[..., None, :], bits=bits, symmetric=symmetric, before=before)
  codes = codes[..., 0, :].astype(jnp.int8)
  flat = lambda a: None if a is None else a[..., 0, :]
  return codes, flat(scale), flat(offset), jnp.sum(codes, axis=-1, keepdims=True, dtype=jnp.int32)


_FUNCTIONS = {
    'xla': _xla,
    'mosaic_gpu': lambda x, **options: mosaic.quantize(codes_of, x, **options),
}
