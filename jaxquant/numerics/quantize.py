"""The one quantize/dequantize pair, and the groups whose members share a scale."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.numerics import formats
from jaxquant.numerics import packing
from jaxquant.numerics import qtensor

_TINY = float(np.finfo(np.float32).tiny)


def split_groups(x, axis: int, groups: int):
  """Cuts `axis` (negative) of `x` into `groups` runs: shape [..., groups, size // groups, ...]."""
  axis += x.ndim
  return x.reshape(*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :])


def spread(per_group, axis: int, size: int):
  """Repeats per-group values along `axis` to `size` elements, so that they broadcast against the array."""
  groups = per_group.shape[axis]
  return per_group if groups == 1 else jnp.repeat(per_group, size // groups, axis=axis)


def affine(low, high, fmt: formats.Format):
  """Scale and zero point of a value range.

  Args:
    low, high: float32 ends of the range, low <= high, any shape; low <= 0 <= high unless the format is without zero.
    fmt: symmetric formats use max(-low, high) over half the range of codes; asymmetric ones (high - low) / maximum.

  Returns:
    (scale, zero_point): float32 and uint8 of the same shape; zero_point is None for symmetric formats, and the float32
    -low / scale for a format without zero in range. An empty range has scale 1 at zero, so that zeros stay exactly
    zero, and its magnitude elsewhere; of other scales the format's smallest value is at least the smallest normal
    number. Scales above its reciprocal, 8.5e37, cannot be divided by.
  """
  if fmt.symmetric:
    scale = _divided(jnp.maximum(-low, high), (fmt.maximum - fmt.minimum) / 2, fmt)
  else:
    scale = (high / 2 - low / 2) / (fmt.maximum / 2)  # the difference itself may overflow
  # Asked of the range, since the scale of a tiny one underflows.
  scale = jnp.where(low == high, jnp.where(low == 0, 1.0, jnp.abs(low)), jnp.maximum(scale, _TINY / fmt.resolution))
  if not fmt.with_zero:
    return scale, -low / scale
  return scale, None if fmt.symmetric else jnp.round(-low / scale).astype(jnp.uint8)


def encode(x, scale, zero_point, fmt: formats.Format):
  """Codes of float values for broadcastable scales: int8 or uint8.

  Uniform codes round half to even, then saturate. In a dINT format +c takes special * scale / 2 < x <=
  (special + 1) * scale / 2, and -c the mirror image (arXiv:2311.05161, section 4): within a min-max range every
  value gets the nearest code. Beyond a range that ends at zero, values saturate to zero, although c is nearer.
  """
  steps = _divided(x.astype(jnp.float32), scale, fmt)
  if fmt.with_zero:
    codes = jnp.round(steps)
    if zero_point is not None:
      codes += zero_point.astype(jnp.float32)
  else:
    codes = jnp.round(steps + zero_point)
  codes = jnp.clip(codes, fmt.minimum, fmt.maximum)
  if isinstance(fmt, formats.DIntFormat):
    near, far = fmt.special / 2, (fmt.special + 1) / 2
    codes = jnp.where((steps > near) & (steps <= far), fmt.plus, codes)
    codes = jnp.where((steps < -near) & (steps >= -far), fmt.minus, codes)
  return codes.astype(fmt.dtype)


def _divided(x, y, fmt: formats.Format):
  """x / y; for codes of the full range correctly rounded, as others do it.

  There the largest magnitude of a range lies on a tie, half a step beyond a code, so that the last bit of the quotient
  decides which code it gets. XLA multiplies by the reciprocal of what it broadcasts, unless it cannot see that it does.
  """
  if getattr(fmt, 'full', False):
    y = jax.lax.optimization_barrier(jnp.broadcast_to(jnp.asarray(y, jnp.float32), x.shape))
  return x / y


def multiples(codes, zero_point, fmt: formats.Format):
  """The integers that codes stand for, int16 for broadcastable zero points: value = multiple * resolution * scale.

  Codes of a format without zero in range stand for none.
  """
  per_step = round(1 / fmt.resolution)
  integers = codes.astype(jnp.int16)
  if zero_point is not None:
    integers -= zero_point.astype(jnp.int16)
  integers *= per_step
  if isinstance(fmt, formats.DIntFormat):
    integers = jnp.where(codes == fmt.plus, 1, jnp.where(codes == fmt.minus, -1, integers))
  return integers


def decode(codes, scale, zero_point, fmt: formats.Format):
  """Float32 values of codes for broadcastable scales: (codes - zero_point) * scale, or +-c for dINT's special codes."""
  if not fmt.with_zero:
    return (codes.astype(jnp.float32) - zero_point) * scale
  return multiples(codes, zero_point, fmt).astype(jnp.float32) * fmt.resolution * scale


def group_count(size: int, group_size: int | None, what: str = 'array') -> int:
  """Groups of `group_size` in `size` elements (None: one group); raises `UserError` where it does not divide."""
  if group_size is None:
    return 1
  if group_size < 1 or size % group_size:
    raise errors.UserError(f'{what}: group size {group_size} does not divide {size} elements')
  return size // group_size


def extrema(x, axis=None):
  """(least, greatest) of `x` over `axis`, NaN where one of its values is; on CPUs XLA may lose those of many."""
  lost = jnp.where(jnp.any(jnp.isnan(x), axis=axis), jnp.nan, 0.0).astype(x.dtype)
  return jnp.min(x, axis=axis) + lost, jnp.max(x, axis=axis) + lost


def group_range(
    x, *, axis: int, group_size: int | None = None, per_tensor: bool = False, with_zero: bool = True):
  """Least and greatest value of every group of `x`: float32, `axis` shrunk to the number of groups.

  Ranges are extended to zero, unless `with_zero` is False.
  """
  if per_tensor and group_size is not None:
    raise errors.UserError(f'one range for the whole tensor excludes groups of {group_size}')
  grouped = split_groups(x.astype(jnp.float32), axis, group_count(x.shape[axis], group_size))
  low, high = extrema(grouped, axis=None if per_tensor else axis)
  if with_zero:
    low, high = jnp.minimum(low, 0.0), jnp.maximum(high, 0.0)
  return (low.reshape((1,) * x.ndim), high.reshape((1,) * x.ndim)) if per_tensor else (low, high)


def quantize(
    x, fmt: formats.Format, *, axis: int = -2, group_size: int | None = None, per_tensor: bool = False
) -> qtensor.QTensor:
  """Rounds `x` to the nearest codes of `fmt` with min-max scales.

  Args:
    x: floating array of rank 2 or more, [..., in, out] for a linear layer's kernel.
    fmt: the number format.
    axis: -2 or -1, the axis that is cut into groups.
    group_size: elements of `axis` that share a scale; None: the whole axis, a scale per channel of the other one.
    per_tensor: one scale for the whole array; excludes `group_size`.

  Returns:
    A QTensor with float32 scales. All-zero groups are exact; a constant or one-signed group is exact at its largest
    magnitude to one unit in the last place of float32, since the range is extended to zero (in a format without zero,
    at both of its ends).

  Raises:
    UserError: `group_size` does not divide the axis, or is given with `per_tensor`.
  """
  low, high = group_range(x, axis=axis, group_size=group_size, per_tensor=per_tensor, with_zero=fmt.with_zero)
  scale, zero_point = affine(low, high, fmt)
  return from_scales(x, scale, zero_point, fmt, axis=axis)


def from_scales(x, scale, zero_point, fmt: formats.Format, *, axis: int = -2) -> qtensor.QTensor:
  """Rounds `x` to codes for given scales and zero points, shaped as in a QTensor."""
  size = x.shape[axis]
  codes = encode(x, *_spread(scale, zero_point, axis, size), fmt)
  return qtensor.QTensor(packing.pack(codes, fmt, axis), scale, zero_point, fmt, axis, size)


def rounded(x, scale, zero_point, fmt: formats.Format, *, axis: int = -2):
  """The float32 values of `from_scales` with the same arguments, without packing codes in between."""
  wide = _spread(scale, zero_point, axis, x.shape[axis])
  return decode(encode(x, *wide, fmt), *wide, fmt)


def dequantize(q: qtensor.QTensor, dtype=jnp.float32):
  """The values of `q` as an array of `dtype` and the logical shape; arithmetic is float32."""
  return decode(q.unpacked(), *_spread(q.scale, q.zero_point, q.axis, q.size), q.format).astype(dtype)


def _spread(scale, zero_point, axis, size):
  """(scale, zero point) of every element, the latter None where there is none."""
  return spread(scale, axis, size), None if zero_point is None else spread(zero_point, axis, size)
