"""What happens to a result on its way to memory: a gate, and codes on a static range for the product that reads it."""

from typing import Any, NamedTuple

from kernels import before
from kernels import checks
from kernels import gates
from kernels import static_ranges


class Behind(NamedTuple):
  """A gate, then codes.

  Attributes:
    gate: one of `gates.GATES`, of outputs in pairs of runs (`gates.paired`), of which half as many become; or None.
    static: the range on which the result becomes codes, as `quantize_activations` makes them; None: it stays floating.
    bits: of the codes, 2 to 8; without meaning where there are none.
  """

  gate: str | None = None
  static: static_ranges.StaticRange | None = None
  bits: int = 8

  def outputs(self, count: int) -> int:
    """What `count` outputs become."""
    return count // 2 if self.gate else count

  def split(self) -> tuple[dict[str, Any], 'Behind']:
    """(the range by `static_ranges.NAMES`, the rest, which hashes); `join` puts them together."""
    return static_ranges.named(self.static), self._replace(static=self.static and static_ranges.StaticRange(None))

  def join(self, arrays: dict[str, Any]) -> 'Behind':
    """The whole of a rest that `split` made, with the range among other arrays."""
    return self._replace(
        static=self.static and static_ranges.StaticRange(*(arrays[name] for name in static_ranges.NAMES)))


def check(behind: Behind, outputs: int) -> None:
  """Raises `ValueError` for what does not fit a result of so many outputs."""
  if not isinstance(behind, Behind):
    raise ValueError(f'what happens behind is a kernels.Behind, not a {type(behind).__name__}')
  gates.check(behind.gate, outputs)
  if behind.static is not None:
    static_ranges.check(behind.static)
    checks.bits('bits', behind.bits, 8, least=2)


def apply(y, behind: Behind, dtype):
  """What becomes of floating y [..., N]: of the dtype, or codes int8; [..., N / 2] behind a gate."""
  y = y.astype(dtype)
  if behind.gate:
    y = gates.apply(behind.gate, *gates.halves(y), before.narrow)
  return y if behind.static is None else static_ranges.codes(y, behind.static, behind.bits)
