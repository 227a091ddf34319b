"""Codes of an activation: the integers that a quantizer makes of it, and the values that they stand for."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxquant.numerics import quantize


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=['codes', 'scale', 'offset', 'row_sums'], meta_fields=['bits'])
@dataclasses.dataclass(frozen=True)
class Codes:
  """A quantized activation: value = scale * code + offset.

  Attributes:
    codes: int8 [..., features].
    scale: float32, scalar or [..., groups]: static per tensor, per token (one group), or per group of features.
    offset: float32 like `scale`, or None where it is zero. A real number: a learned lower end need not be a multiple
      of the step.
    bits: bits of a code.
    row_sums: int32 [..., runs], sums of the codes of equal runs of features, or None where nobody has summed them.
  """

  codes: Any
  scale: Any
  offset: Any
  bits: int
  row_sums: Any = None


def values(codes: Codes):
  """The float32 values that codes stand for."""
  wide = lambda a: a if a.ndim == 0 else quantize.spread(a, -1, codes.codes.shape[-1])
  x = codes.codes.astype(jnp.float32) * wide(codes.scale)
  return x if codes.offset is None else x + wide(codes.offset)
