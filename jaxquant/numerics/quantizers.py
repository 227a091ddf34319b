"""Quantizers as nodes of a parameter tree.

An input quantizer answers two questions about an activation x of shape [..., features]: `quantizer(x)`, the quantized
values, differentiable with respect to x and the ranges (training, and products with a float kernel); and
`quantizer.codes(x)`, the same as integers (products with a QTensor). Both agree to float32 rounding.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxquant import errors
from jaxquant.numerics import codes as codes_lib
from jaxquant.numerics import formats
from jaxquant.numerics import nodes
from jaxquant.numerics import qtensor
from jaxquant.numerics import quantize
from jaxquant.numerics import rounding
from jaxquant.numerics import two_level

_MINIMUM_WIDTH = 1e-6


@nodes.node('low', 'high')
class ClipQuantizer:
  """Static asymmetric range, learned or calibrated: `2^bits` levels from `low` to `high` inclusive.

  Attributes:
    low, high: float32, low < high: scalars, or [heads, head features] for an attention operand, a range for each of its
      channels.
    bits: bits of a code.
    align_zero: shift the range by less than half a step so that zero is a level. Off reproduces the public kernel of
      arXiv:2404.03605, which leaves the zero point unrounded.
  """

  low: Any
  high: Any
  bits: int
  align_zero: bool = False

  def __post_init__(self):
    formats.check_bits(self.bits)

  def ends(self):
    """The range in use: (low, high), float32."""
    return rounding.align_zero(self.low, self.high, self.bits) if self.align_zero else (self.low, self.high)

  def __call__(self, x):
    return rounding.clip_quantize(x, *self.ends(), self.bits)

  def codes(self, x) -> codes_lib.Codes:
    """Integer codes of `x`."""
    return _range_codes(x, *self.ends(), self.bits)

  def projected(self) -> 'ClipQuantizer':
    """The quantizer with high > low again, after an optimizer step; a range that is wide enough keeps its bits."""
    # Relative to the ends too: 100 - 1e-6 is 100 in float32.
    least = _MINIMUM_WIDTH * jnp.maximum(1.0, jnp.maximum(jnp.abs(self.low), jnp.abs(self.high)))
    lacking = jnp.maximum(least - (self.high - self.low), 0.0) / 2
    return ClipQuantizer(self.low - lacking, self.high + lacking, self.bits, self.align_zero)


@nodes.node('clip')
class PactQuantizer:
  """PACT (arXiv:1805.06085): one learned end; levels over [0, clip], or [-clip, clip] when `signed`."""

  clip: Any
  bits: int
  signed: bool = True

  def __post_init__(self):
    formats.check_bits(self.bits)

  def ends(self):
    """The range in use: (low, high) float32 scalars."""
    return (-self.clip if self.signed else jnp.zeros_like(self.clip)), self.clip

  def __call__(self, x):
    return rounding.pact_quantize(x, self.clip, self.bits, self.signed)

  def codes(self, x) -> codes_lib.Codes:
    """Integer codes of `x`."""
    return _range_codes(x, *self.ends(), self.bits)

  def projected(self) -> 'PactQuantizer':
    """The quantizer with a positive clip again, after an optimizer step."""
    return PactQuantizer(jnp.maximum(self.clip, _MINIMUM_WIDTH), self.bits, self.signed)


@nodes.node('step')
class StepQuantizer:
  """LSQ (arXiv:1902.08153): a learned step, signed codes from -2^(bits-1) to 2^(bits-1) - 1."""

  step: Any
  bits: int

  def __post_init__(self):
    formats.check_bits(self.bits)

  def _bounds(self):
    return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1

  def ends(self):
    """The range in use: (low, high) float32 scalars."""
    minimum, maximum = self._bounds()
    return minimum * self.step, maximum * self.step

  def __call__(self, x):
    return rounding.step_quantize(x, self.step, *self._bounds())

  def codes(self, x) -> codes_lib.Codes:
    """Integer codes of `x`."""
    codes = jnp.round(jnp.clip(x.astype(jnp.float32) / self.step, *self._bounds()))
    return codes_lib.Codes(codes.astype(jnp.int8), self.step, None, self.bits)

  def projected(self) -> 'StepQuantizer':
    """The quantizer with a positive step again, after an optimizer step."""
    return StepQuantizer(jnp.maximum(self.step, _MINIMUM_WIDTH), self.bits)


@nodes.node()
class DynamicQuantizer:
  """Ranges taken from the activation itself: per token, per group of features, or per tensor; zero is in the range.

  Attributes:
    format: integers, symmetric or asymmetric, with zero in range; others raise `UserError`.
    group_size: features that share a scale; None: all of a token.
    per_tensor: one range for the whole activation; excludes `group_size`.
  """

  format: formats.IntFormat
  group_size: int | None = None
  per_tensor: bool = False

  def __post_init__(self):
    if not isinstance(self.format, formats.IntFormat) or not self.format.with_zero:
      name = getattr(self.format, 'name', repr(self.format))
      raise errors.UserError(f'activations take integer formats (formats.parse), not {name}')

  def codes(self, x) -> codes_lib.Codes:
    """Integer codes of `x`; asymmetric codes are shifted by 2^(bits-1) into int8."""
    low, high = quantize.group_range(x, axis=-1, group_size=self.group_size, per_tensor=self.per_tensor)
    scale, zero_point = quantize.affine(low, high, self.format)
    wide = lambda a: None if a is None else quantize.spread(a, -1, x.shape[-1])
    codes = quantize.encode(x, wide(scale), wide(zero_point), self.format)
    if zero_point is None:
      return codes_lib.Codes(codes, scale, None, self.format.bits)
    shift = 2 ** (self.format.bits - 1)
    offset = scale * (shift - zero_point.astype(jnp.float32))
    return codes_lib.Codes((codes.astype(jnp.int32) - shift).astype(jnp.int8), scale, offset, self.format.bits)

  def __call__(self, x):
    return _straight_through(x, codes_lib.values(self.codes(x)))

  def projected(self) -> 'DynamicQuantizer':
    """Itself: nothing is learned."""
    return self


@nodes.node()
class WeightQuantizer:
  """Weights rounded to the nearest code in the forward pass of training, with min-max scales and gradient 1.

  What it computes equals the dequantized result of `quantize.quantize` with the same arguments, its scales snapped if
  they are to be, so that rounding the trained kernel to a QTensor changes nothing.

  Attributes:
    format: of the codes.
    axis: -2 or -1, the axis that is cut into groups.
    group_size: elements of `axis` that share a scale; None: all.
    two_level: whether scales are snapped to multiples of one float for each output (numerics.two_level). For groups of
      inputs of symmetric integers of at most 4 bits; anything else raises `UserError`.
    per_tensor: one scale for the whole kernel, without groups.
  """

  format: formats.Format
  axis: int = -2
  group_size: int | None = None
  two_level: bool = False
  per_tensor: bool = False

  def __post_init__(self):
    if not isinstance(self.format, formats.Format):
      raise errors.UserError(f'the format of weights is a formats.Format (formats.parse), not {self.format!r}')
    if self.per_tensor and (self.axis != -2 or self.group_size is not None):
      raise errors.UserError('one scale for a whole kernel excludes ' + (
          'those of input channels' if self.axis != -2 else f'groups of {self.group_size}'))
    if not self.two_level:
      return
    if not isinstance(self.format, formats.IntFormat) or not self.format.symmetric or self.format.bits > 4:
      raise errors.UserError(f'two-level scales are for symmetric integers of at most 4 bits, not {self.format.name}')
    if self.axis != -2 or self.group_size is None:
      raise errors.UserError('two-level scales are those of groups of inputs, and ' + (
          'there is no group size' if self.axis == -2 else 'these are scales of each input channel'))

  def check(self, shape: tuple[int, ...], path: str) -> None:
    """Raises `UserError` naming `path` if the group size does not divide a kernel of `shape`."""
    quantize.group_count(shape[self.axis], self.group_size, path)

  def scales(self, kernel) -> tuple[Any, Any]:
    """(scale, zero point) of the kernel's min-max ranges, shaped as in a QTensor."""
    low, high = quantize.group_range(
        kernel, axis=self.axis, group_size=self.group_size, per_tensor=self.per_tensor,
        with_zero=self.format.with_zero)
    scale, zero_point = quantize.affine(low, high, self.format)
    return two_level.snapped(scale, low != high) if self.two_level else scale, zero_point

  def quantized(self, kernel) -> qtensor.QTensor:
    """The kernel as codes."""
    return quantize.from_scales(kernel, *self.scales(kernel), self.format, axis=self.axis)

  def rounded(self, kernel):
    """The float32 values of `quantized(kernel)`."""
    return quantize.rounded(kernel, *self.scales(kernel), self.format, axis=self.axis)

  def __call__(self, kernel):
    return _straight_through(kernel, self.rounded(kernel))


INPUT_QUANTIZERS = (ClipQuantizer, PactQuantizer, StepQuantizer, DynamicQuantizer)


def _range_codes(x, low, high, bits):
  """Codes of `x` on `2^bits` levels from `low` to `high`, shifted by 2^(bits-1) into int8; of NaN, any of them."""
  shift = 2 ** (bits - 1)
  step = (high - low) / (2**bits - 1)
  codes = jnp.round(rounding.range_steps(x, low, high, bits)) - shift
  return codes_lib.Codes(codes.astype(jnp.int8), step, low + step * shift, bits)


@jax.custom_jvp
def _straight_through(x, quantized):
  """`quantized` in the dtype of `x`, with the derivative of `x`."""
  return quantized.astype(x.dtype)


@_straight_through.defjvp
def _(primals, tangents):
  return _straight_through(*primals), tangents[0]
