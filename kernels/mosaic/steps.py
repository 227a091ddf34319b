"""The steps of a product, one after another: operands arrive, are multiplied, and make room for those to come."""

import dataclasses
import functools
from typing import Any, Callable

from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu


@dataclasses.dataclass(frozen=True)
class Steps:
  """The steps of a warpgroup.

  Attributes:
    count: how many. Where they overlap, a Python number of at least 1; else an array of one, too, which may be 0.
    arrive: waits until the operands of a step are there, and returns their slot.
    leave: lets others have the slot of a step, whose operands have been read.
    overlap: whether the tensor cores are at a step while what the next one needs in registers is loaded. Then a step
      leaves only when the next one's operands have arrived.
  """

  count: Any
  arrive: Callable[[Any], Any]
  leave: Callable[[Any], None]
  overlap: bool = False

  def each(self, body: Callable[[Any, Any], Any], carry):
    """Calls `carry = body(slot, carry)` for each step, and returns the last."""
    def step(k, carry):
      carry = body(self.arrive(k), carry)
      self.leave(k)
      return carry

    return lax.fori_loop(0, self.count, step, carry)

  def multiply(self, load: Callable[[Any], Any], start: Callable[[Any, Any], None]) -> None:
    """Multiplies each step: `start(slot, load(slot))`, and waits for the last product.

    Args:
      load: makes an operand of the slot in registers, or returns None.
      start: starts the product of a slot.
    """
    if not self.overlap:
      self.each(functools.partial(_whole, load, start), None)
      return

    def step(k, slot, operand):
      """Starts a step, and loads the next one when the step before this one has been read."""
      start(slot, operand)
      plgpu.wgmma_wait(1)
      pl.when(k > 0)(lambda: self.leave(k - 1))
      following = self.arrive(k + 1)
      return following, load(following)

    # Two at once: the operands of one and of the next are in registers of their own, and need not move.
    pair = lambda i, carry: step(2 * i + 1, *step(2 * i, *carry))
    last, first = self.count - 1, self.arrive(0)
    carry = lax.fori_loop(0, last // 2, pair, (first, load(first)))
    if last % 2:
      carry = step(last - 1, *carry)
    start(*carry)
    plgpu.wgmma_wait(0)
    if last:
      self.leave(last - 1)
    self.leave(last)


def _whole(load, start, slot, carry):
  """One step from its loads to the end of its product."""
  start(slot, load(slot))
  plgpu.wgmma_wait(0)
  return carry
