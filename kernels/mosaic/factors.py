"""What belongs to the codes of weights in a product: scales of groups, and integers that their values depend on."""

from collections.abc import Callable
import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Groups:
  """Scales of G groups of inputs: sums over groups of scale[g, n] * sums[g, n, m] + offset[g, n] * row_sum[g, m].

  Attributes:
    scale: float32 [G, N]; a step has one group or several.
    offset: float32 [G, N], or None for zero.
    row_sums: float32 [G, M], M in whole tiles and at least 32, or None with `offset`.
    factor: a Python number that belongs to the scales.
  """

  scale: Any
  offset: Any = None
  row_sums: Any = None
  factor: float = 1.0

  def arrays(self) -> list[Any]:
    """The arrays there are, in the order in which a kernel gets them."""
    return [array for array in (self.scale, self.offset, self.row_sums) if array is not None]


@dataclasses.dataclass(frozen=True)
class Unpacking:
  """How codes become integers that depend on their output, or on the group of inputs: their zero points, multipliers.

  Attributes:
    values: int32 [N], or [G, N] for G groups of inputs, those of the scales where these have groups.
    unpack: (int8 [rows, K / 2], int32 [rows] for each of equal parts of the K columns) -> the operand, int8 [rows, K].
  """

  values: Any
  unpack: Callable[[Any, list[Any]], Any]
