"""QTensor: a quantized array as data in a parameter tree."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from jaxquant.numerics import formats
from jaxquant.numerics import nodes
from jaxquant.numerics import packing


@nodes.node('codes', 'scale', 'zero_point')
class QTensor:
  """Packed integer codes with their scales: value = (code - zero_point) * scale, but for dINT's special codes.

  Invariants:
    * `axis` is negative and names the axis that is cut into groups and packed: the contraction axis of a linear
      layer's kernel, unless a method groups along the other one. Leading axes may be added (vmap, stacking).
    * `codes` is uint8; `size` is the logical length of `axis`; the logical shape is otherwise that of `codes`.
    * `scale` is float32 with the rank of `codes`; along `axis` it has one entry a group, along every other axis
      one entry or as many as the array. The number of groups divides `size`.
    * `zero_point` has the shape of `scale`: uint8, or float32 for formats without zero in range; None for symmetric
      formats.
    * Every array shards along the other axis in the same way; along `axis` a shard boundary must be a group's.
  """

  codes: Any
  scale: Any
  zero_point: Any
  format: formats.Format
  axis: int
  size: int

  @property
  def shape(self) -> tuple[int, ...]:
    """The logical shape."""
    shape = list(self.codes.shape)
    shape[self.axis] = self.size
    return tuple(shape)

  @property
  def ndim(self) -> int:
    """The rank."""
    return self.codes.ndim

  @property
  def groups(self) -> int:
    """Groups along `axis`."""
    return self.scale.shape[self.axis]

  @property
  def group_size(self) -> int:
    """Elements that share a scale along `axis`."""
    return self.size // self.groups

  @property
  def bits_per_value(self) -> float:
    """Stored bits per element, scales and zero points included."""
    arrays = [self.codes, self.scale] + ([] if self.zero_point is None else [self.zero_point])
    return sum(a.size * a.dtype.itemsize * 8 for a in arrays) / math.prod(self.shape)

  def unpacked(self):
    """The codes, one an element: int8 or uint8 of the logical shape."""
    return packing.unpack(self.codes, self.format, self.axis, self.size)

  def transposed(self) -> 'QTensor':
    """The same values with the last two axes exchanged; moves no bits within a byte."""
    swap = lambda a: None if a is None else jnp.swapaxes(a, -1, -2)
    axis = {-1: -2, -2: -1}[self.axis]
    return dataclasses.replace(
        self, codes=swap(self.codes), scale=swap(self.scale), zero_point=swap(self.zero_point), axis=axis
    )
