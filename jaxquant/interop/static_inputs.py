"""Static ranges of activations between our quantizers and compressed-tensors: a range for everything a linear reads.

  input_scale       float32 [1]
  input_zero_point  int8 [1], where codes are asymmetric

value = (code - zero point) * scale, codes from -2^(bits-1) to 2^(bits-1) - 1: zero is always a level. Our ranges need
not have such a level; those that have it are these.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.numerics import quantizers

# Steps by which a level may miss zero: what float32 ends leave of an exact zero point.
_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class StaticInput:
  """How a linear's inputs are quantized, but for the range.

  Attributes:
    bits: of a code.
    symmetric: whether the zero point is zero.
  """

  bits: int
  symmetric: bool

  @classmethod
  def of(cls, quantizer: Any, path: str) -> 'StaticInput':
    """That of a quantizer; raises `UserError` naming `path` where it has a range for each of several channels."""
    if quantizer.ends()[0].ndim:
      raise errors.UserError(f'{path}: other formats take one static range for a tensor, not one for each channel')
    return cls(quantizer.bits, isinstance(quantizer, quantizers.StepQuantizer))

  def shapes(self) -> dict[str, tuple[np.dtype | None, tuple[int, ...]]]:
    """Dtype (None for any float) and shape of every tensor, by the end of its name."""
    made = {'input_scale': (None, (1,))}
    return made if self.symmetric else made | {'input_zero_point': (np.dtype(np.int8), (1,))}

  def encode(self, quantizer: Any, path: str) -> dict[str, np.ndarray]:
    """The tensors of a quantizer; raises `UserError` naming `path` if zero is not one of its levels."""
    if self.symmetric:
      return {'input_scale': np.asarray(quantizer.step, np.float32).reshape(1)}
    low, high = (np.float32(end) for end in quantizer.ends())
    steps = 2**self.bits - 1
    scale = (high - low) / np.float32(steps)
    level = float(-low / scale)
    if abs(level - round(level)) > _TOLERANCE or not 0 <= round(level) <= steps:
      raise errors.UserError(
          f'{path}: zero is not a level of its range, from {low:.4g} to {high:.4g}, and other formats know no such '
          'range; with align_zero, calibration gives ranges that level')
    zero_point = round(level) - 2 ** (self.bits - 1)
    return {'input_scale': scale.reshape(1), 'input_zero_point': np.array([zero_point], np.int8)}

  def decode(self, tensors: Mapping[str, np.ndarray], where: str) -> Any:
    """The quantizer of the tensors; raises `UserError` naming `where` for a scale or a zero point that is none."""
    scale = np.float32(tensors['input_scale'][0])
    if not (np.isfinite(scale) and scale > 0):
      raise errors.UserError(f'{where}: input_scale is {scale}')
    if self.symmetric:
      return quantizers.StepQuantizer(np.array(scale), self.bits)
    level = int(tensors['input_zero_point'][0]) + 2 ** (self.bits - 1)
    if not 0 <= level < 2**self.bits:
      raise errors.UserError(f'{where}: input_zero_point is beyond {self.bits} bits')
    low, high = (np.float32(level_of) * scale for level_of in (-level, 2**self.bits - 1 - level))
    return quantizers.ClipQuantizer(np.array(low), np.array(high), self.bits)

  def abstract(self) -> Any:
    """The quantizer, as shapes."""
    end = jax.ShapeDtypeStruct((), jnp.float32)
    return quantizers.StepQuantizer(end, self.bits) if self.symmetric else quantizers.ClipQuantizer(end, end, self.bits)
