"""Number formats: which codes exist, how many bits one takes, and how many of them share a byte."""

import dataclasses
import re

import jax.numpy as jnp

from jaxquant import errors


def check_bits(bits: int) -> None:
  """Raises `UserError` for a number of bits that no integer code has: an int8 holds it, and one bit has no step."""
  if not 2 <= bits <= 8:
    raise errors.UserError(f'integer formats have 2 to 8 bits, not {bits}')


@dataclasses.dataclass(frozen=True)
class IntFormat:
  """Integers of 2 to 8 bits.

  Symmetric codes are signed and restricted to +-(2^(bits-1) - 1), so that negation is exact and zero is a code; or they
  run over the `full` range from -2^(bits-1), as others have it, with the largest magnitude half a step beyond the
  largest code. Asymmetric codes run over 0 .. 2^bits - 1 and need a zero point beside the scale: one of the codes,
  where ranges are widened until zero is in them, so that zero is a value; or a real number of any size.

  Attributes:
    bits: bits of one code, 2 to 8.
    symmetric: signed codes around zero, else unsigned codes.
    full: whether symmetric codes use the least one too.
    with_zero: whether zero is in every range; without, the zero points of asymmetric codes are real numbers, so that
      the codes of a group of one sign all lie between its own ends.
  """

  bits: int
  symmetric: bool = True
  full: bool = False
  with_zero: bool = True

  def __post_init__(self):
    check_bits(self.bits)
    if self.full and not self.symmetric:
      raise errors.UserError('asymmetric integer formats have the full range anyway')
    if self.symmetric and not self.with_zero:
      raise errors.UserError('symmetric integer formats have zero in the middle of their ranges anyway')

  @property
  def name(self) -> str:
    """`int4` or `full_int4` for symmetric, `uint4` or `offset_uint4` for asymmetric codes: what `parse` reads."""
    kind = ('full_' if self.full else '') if self.symmetric else ('u' if self.with_zero else 'offset_u')
    return f'{kind}int{self.bits}'

  @property
  def minimum(self) -> int:
    """The smallest code."""
    return -(2 ** (self.bits - 1) - (not self.full)) if self.symmetric else 0

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

  @property
  def resolution(self) -> float:
    """The step of the coarsest uniform grid that holds every value, in units of the scale: 1."""
    return 1.0


@dataclasses.dataclass(frozen=True)
class DIntFormat:
  """dINT (arXiv:2311.05161, section 4): asymmetric integers that give up two codes for the values +-c around zero.

  Codes 0 .. p, p = 2^bits - 3, are a uniform grid with a scale and a zero point, as in an asymmetric `IntFormat`. The
  last two codes stand for +c and -c, c = special * scale, whatever the zero point. Weights too small for a step then
  need not vanish; the price is a wider step, range / p. Every value is a multiple of c.

  Attributes:
    bits: bits of one code: 3, 4 or 8.
    special: c over the scale: 1/2, 1/4 or 1/8, a power of two, so that a product with c is a shift.
  """

  bits: int
  special: float = 0.5

  def __post_init__(self):
    if self.bits not in (3, 4, 8):
      raise errors.UserError(f'dINT formats have 3, 4 or 8 bits, not {self.bits}')
    if self.special not in (1 / 2, 1 / 4, 1 / 8):
      raise errors.UserError(f'the special value of a dINT format is 1/2, 1/4 or 1/8 of a step, not {self.special}')

  @property
  def name(self) -> str:
    """`dint4`, or `dint4/8` where c is an eighth of the scale instead of half of it: what `parse` reads."""
    return f'dint{self.bits}' + ('' if self.special == 1 / 2 else f'/{round(1 / self.special)}')

  @property
  def symmetric(self) -> bool:
    """False: there is a zero point."""
    return False

  @property
  def with_zero(self) -> bool:
    """True: the zero point is one of the codes."""
    return True

  @property
  def minimum(self) -> int:
    """The smallest code of the uniform grid: 0."""
    return 0

  @property
  def maximum(self) -> int:
    """The largest code of the uniform grid: p."""
    return 2**self.bits - 3

  @property
  def plus(self) -> int:
    """The code of +c: p + 1."""
    return self.maximum + 1

  @property
  def minus(self) -> int:
    """The code of -c: p + 2."""
    return self.maximum + 2

  @property
  def dtype(self):
    """The dtype of unpacked codes: uint8."""
    return jnp.uint8

  @property
  def storage_bits(self) -> int:
    """Bits a packed code takes: 4 or 8, the next that divides a byte."""
    return 4 if self.bits <= 4 else 8

  @property
  def resolution(self) -> float:
    """The step of the coarsest uniform grid that holds every value, in units of the scale: `special`."""
    return self.special

  @property
  def multiple_bits(self) -> int:
    """Bits of a signed integer that holds every value as a multiple of c, for any zero point: 5 to 12."""
    return (self.maximum * round(1 / self.special)).bit_length() + 1


Format = IntFormat | DIntFormat


def parse(name: str) -> Format:
  """The format called `name`, e.g. `int4`, `uint8` or `dint4`; raises `UserError` for a name that is none."""
  if match := re.fullmatch(r'(u|full_|offset_u)?int([2-8])', name):
    kind = match[1] or ''
    return IntFormat(int(match[2]), not kind.endswith('u'), kind == 'full_', kind != 'offset_u')
  if match := re.fullmatch(r'dint([348])(?:/([48]))?', name):
    return DIntFormat(int(match[1]), special=1 / int(match[2] or 2))
  raise errors.UserError(
      f'unknown number format {name!r}; there are int2 to int8, uint2 to uint8, full_int2 to full_int8, offset_uint2 '
      'to offset_uint8, and dint3, dint4 and dint8, or dint4/4 and dint4/8 for a special value of a quarter or an '
      'eighth of a step')
