"""Number formats: which codes exist, how many bits one takes, and how many of them share a byte."""

import dataclasses
import re

import jax.numpy as jnp

from jaxquant import errors


@dataclasses.dataclass(frozen=True)
class IntFormat:
  """Integers of 2 to 8 bits.

  Symmetric codes are signed and restricted to +-(2^(bits-1) - 1), so that negation is exact and zero is a code.
  Asymmetric codes run over 0 .. 2^bits - 1 and need a zero point (or a real-valued lower end) beside the scale.

  Attributes:
    bits: bits of one code, 2 to 8.
    symmetric: signed codes around zero, else unsigned codes.
  """

  bits: int
  symmetric: bool = True

  def __post_init__(self):
    if not 2 <= self.bits <= 8:
      raise errors.UserError(f'integer formats have 2 to 8 bits, not {self.bits}')

  @property
  def name(self) -> str:
    """`int4` for symmetric, `uint4` for asymmetric codes: what `parse` reads."""
    return f'{"int" if self.symmetric else "uint"}{self.bits}'

  @property
  def minimum(self) -> int:
    """The smallest code."""
    return -(2 ** (self.bits - 1) - 1) if self.symmetric else 0

  @property
  def maximum(self) -> int:
    """The largest code."""
    return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1

  @property
  def dtype(self):
    """The dtype of unpacked codes: int8 or uint8."""
    return jnp.int8 if self.symmetric else jnp.uint8

  @property
  def storage_bits(self) -> int:
    """Bits a packed code takes: 2, 4 or 8, the next that divides a byte."""
    return 2 if self.bits == 2 else 4 if self.bits <= 4 else 8


def parse(name: str) -> IntFormat:
  """The format called `name`, e.g. `int4` or `uint8`; raises `UserError` for a name that is none."""
  match = re.fullmatch(r'(u?)int([2-8])', name)
  if not match:
    raise errors.UserError(f'unknown number format {name!r}; there are int2 to int8 and uint2 to uint8')
  return IntFormat(int(match[2]), symmetric=not match[1])
