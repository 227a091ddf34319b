"""What a weight format costs in hardware: cells of a multiply-accumulate unit, counted.

This is a model, not a synthesis. An array multiplier of b x a bits forms b * a partial products with an AND gate each
and adds its b rows of a bits with b - 1 rows of a full adders; signed operands invert some of the gates and change no
count (Baugh and Wooley, 1973). A dINT unit multiplies the uniform code in the same way. Its special codes need no
multiplier, since +-c times x is x or -x, shifted: gates that recognize them, a row of multiplexers that negates x
(the one that completes the negation enters the accumulator as a carry) and one that puts it in place of the product.

The model says where the paper's factor of two (arXiv:2311.05161) comes from: from INT8 to dINT4, partial products are
halved, adders of the multiplier fall from 56 to 24, and the special codes take back a quarter of the transistors that
this saves. Their ratio is then 1.7 without an accumulator and 1.4 with one of 32 bits, less than the 1.93 of the
paper's synthesis in area: a count knows nothing of registers, wires, and the larger cells with which a long chain of
adders meets its clock.
"""

from typing import NamedTuple

from jaxquant.numerics import formats

# Static CMOS: NAND and inverter, the mirror adder, two transmission gates with restored inputs and output.
_TRANSISTORS = {'and_gates': 6, 'full_adders': 28, 'multiplexers': 12}


class Unit(NamedTuple):
  """Cells of a multiply-accumulate unit, each of one bit.

  Attributes:
    and_gates: with two inputs: the partial products, and those that recognize special codes.
    full_adders: of the multiplier, the accumulator, and the subtraction of a zero point.
    multiplexers: with two inputs.
  """

  and_gates: int
  full_adders: int
  multiplexers: int = 0

  @property
  def transistors(self) -> int:
    """The cells weighted by the transistors of their textbook circuits in static CMOS."""
    return sum(_TRANSISTORS[kind] * count for kind, count in self._asdict().items())


class Synthesis(NamedTuple):
  """A synthesized unit: area in square micrometers and power in milliwatts."""

  area: float
  power: float


# As published, not measured here: arXiv:2311.05161, 7 nm at 1 GHz. Keys are formats of weights; activations are int8.
SYNTHESIZED = {'int8': Synthesis(86.33, 0.1595), 'dint4': Synthesis(44.57, 0.0624)}


def multiply_accumulate(
    weights: formats.Format, activation_bits: int = 8, *, accumulator_bits: int = 32, zero_point: bool = False
) -> Unit:
  """The unit that adds weight times activation to a sum.

  Args:
    weights: format of the weight codes.
    activation_bits: bits of the integer activation codes.
    accumulator_bits: bits of the sum; 0 for the multiplier alone.
    zero_point: subtract the weights' zero point before multiplying, which takes a subtractor and a multiplier of one
      bit more. Without it, its term has to be subtracted from finished sums; those of dINT weights leave out the
      activations that met special codes, so that no two outputs share the term.

  Returns:
    Its cells, without registers.
  """
  factor_bits = weights.bits + zero_point
  gates = factor_bits * activation_bits
  adders = (factor_bits - 1) * activation_bits + accumulator_bits + weights.bits * zero_point
  if not isinstance(weights, formats.DIntFormat):
    return Unit(gates, adders)
  # The two special codes are those whose bits, but the last, are all ones. Ordinary products move up by the shift.
  shift = round(1 / weights.special).bit_length() - 1
  return Unit(gates + weights.bits - 2, adders, activation_bits + (factor_bits + activation_bits + shift))
