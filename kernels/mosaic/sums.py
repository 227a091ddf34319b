"""What a warpgroup sums over the steps of a product, with one scale an output or with one for each group of inputs.

A product with one scale an output adds integers from the first input to the last, also where groups of inputs have
integers that go into the weights. With scales of groups, the sums of each start from zero, are scaled and added up in
float32, while the tensor cores are at the next group of the same step.
"""

import dataclasses
import functools
import operator
from typing import Any

from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from kernels.mosaic import mma
from kernels.mosaic import partial_sums
from kernels.mosaic import products
from kernels.mosaic import registers
from kernels.mosaic import steps as steps_lib
from kernels.mosaic import tiles

# Inputs of the parts in which a step is unpacked and multiplied.
_PART = 128
_OF_OUTPUTS = plgpu.Layout.WGMMA.reduce(1)
_OF_TOKENS = plgpu.Layout.WGMMA.reduce(0)


@dataclasses.dataclass(frozen=True)
class Turns:
  """Turns of the warpgroups of a block at the tensor cores: one scales while another multiplies.

  Without them all multiply at the same time, and then all scale, while the tensor cores wait.

  Attributes:
    barriers: one for each warpgroup, or None where there are no turns.
    mine, next: indices of this warpgroup's and the next one's.
  """

  barriers: Any = None
  mine: Any = None
  next: Any = None

  def wait(self) -> None:
    """Waits until it is this warpgroup's turn."""
    if self.barriers is not None:
      plgpu.barrier_wait(self.barriers.at[self.mine])

  def leave(self) -> None:
    """Lets the next warpgroup have its turn."""
    if self.barriers is not None:
      plgpu.barrier_arrive(self.barriers.at[self.next])


@dataclasses.dataclass(frozen=True)
class Tile:
  """A warpgroup's outputs by the tokens of its block.

  Attributes:
    product: the operands.
    smems: their buffers.
    outputs: the slice of the block's that are this warpgroup's.
    shape: [outputs, tokens].
    held: what `product.held` returned for these outputs.
  """

  product: products.Product
  smems: Any
  outputs: Any
  shape: tuple[int, int]
  held: list[Any]

  @property
  def whole(self) -> slice:
    """All columns of a step."""
    return slice(0, self.product.width)

  def parts(self) -> list[slice]:
    """Columns that are unpacked and multiplied one after another, of whole groups."""
    width = self.product.width
    return [slice(first, min(first + _PART, width)) for first in range(0, width, _PART)]

  def zeros(self, dtype):
    """Sums of nothing, in the layout of an accumulator."""
    return plgpu.layout_cast(jnp.zeros(self.shape, dtype), plgpu.Layout.WGMMA)

  def load(self, slot):
    """The weights of a step in registers, where they are packed; None for others."""
    return self.smems[1][slot, self.outputs] if self.product.packed else None

  def operand(self, slot, weights, columns: slice):
    """Some columns of a step's weights, of which `load` returned `weights`, to multiply with."""
    product, smem = self.product, self.smems[1]
    if not product.packed:
      return smem[slot, self.outputs, columns] if product.warps else smem.at[slot, self.outputs, columns]
    weights = weights[:, columns.start // 2 : columns.stop // 2]
    if product.unpacking is None:
      return product.unpack(weights)
    if self.held:
      return product.unpacking.unpack(weights, self.held)
    vectors = self.smems[-1]  # behind the scales, if these have groups too
    count = vectors.shape[1]
    parts = range(columns.start * count // product.width, -(-columns.stop * count // product.width))
    return product.unpacking.unpack(
        weights, [tiles.load(vectors.at[slot, part, self.outputs], _OF_OUTPUTS) for part in parts])

  def add(self, total, sums, slot, part: int):
    """Adds the scaled sums of a group of a step."""
    _, _, *rest = self.smems
    along_n = lambda vector: lax.broadcast_in_dim(vector, self.shape, [0])
    load = lambda ref: tiles.load(ref.at[slot, part, self.outputs], _OF_OUTPUTS)
    total += sums.astype(jnp.float32) * along_n(load(rest[0]) * self.product.groups.factor)
    if self.product.groups.offset is not None:
      row_sums = [tiles.load(rest[2].at[slot, run, part, pl.ds(0, self.shape[1])], _OF_TOKENS)
                  for run in range(self.product.fold)]
      total += along_n(load(rest[1])) * partial_sums.of_runs(row_sums, self.shape)
    return total


def over(steps: steps_lib.Steps, tile: Tile, turns: Turns = Turns()):
  """The sums of a tile over the steps of its warpgroup, which takes turns with others if there are groups."""
  if tile.product.warps:
    return _by_warps(steps, tile) if tile.product.groups is None else _scaled_by_warps(steps, tile)
  return _by_warpgroup(steps, tile) if tile.product.groups is None else _scaled_by_warpgroup(steps, tile, turns)


def _multiply(tile: Tile, slot, sums, weights, first: int):
  """Adds to a list of sums by instructions of warps."""
  return mma.multiply(sums, weights, tile.smems[0].at[slot], first, tile.product.fold)


def _by_warps(steps, tile: Tile):
  """Integers of all steps."""
  def step(slot, sums):
    packed = tile.load(slot)
    for columns in tile.parts():
      sums = _multiply(tile, slot, sums, tile.operand(slot, packed, columns), columns.start)
    return sums

  sums = steps.each(step, [tile.zeros(tile.product.sums)] * mma.chains(*tile.shape))
  return functools.reduce(operator.add, sums)


def _scaled_by_warps(steps, tile: Tile):
  """Scaled sums of groups, whose instructions hide one another's latency."""
  group = tile.product.width // tile.product.parts
  zeros = [tile.zeros(tile.product.sums)] * max(1, mma.chains(*tile.shape) // 2)

  def step(slot, total):
    packed = tile.load(slot)
    for columns in tile.parts():
      weights = tile.operand(slot, packed, columns)
      for first in range(0, columns.stop - columns.start, group):
        place = columns.start + first
        sums = _multiply(tile, slot, zeros, weights[:, first : first + group], place)
        total = tile.add(total, functools.reduce(operator.add, sums), slot, place // group)
    return total

  return steps.each(step, tile.zeros(jnp.float32))


def _by_warpgroup(steps, tile: Tile):
  """Integers of all steps, which stay where the tensor cores add to them."""
  product, x_smem = tile.product, tile.smems[0]

  def run(accumulator):
    def start(slot, weights, columns=tile.whole):
      weights = tile.operand(slot, None, columns) if weights is None else weights
      plgpu.wgmma(accumulator, weights, x_smem.at[slot, :, columns].T)

    def start_parts(slot, packed):
      """The tensor cores are at one part while the next one is unpacked."""
      for columns in tile.parts():
        start(slot, tile.operand(slot, packed, columns), columns)

    if product.packed and steps.overlap:
      steps.multiply(lambda slot: tile.operand(slot, tile.load(slot), tile.whole), start)
    else:
      steps.multiply(tile.load, start_parts if product.packed else start)
    return accumulator[...]

  return pl.run_scoped(run, plgpu.ACC(tile.shape, product.sums))


def _scaled_by_warpgroup(steps, tile: Tile, turns: Turns):
  """Scaled sums of groups: one is scaled while the tensor cores are at the next."""
  product, x_smem = tile.product, tile.smems[0]
  last, group = product.parts - 1, product.width // product.parts

  def of_group(weights, part: int):
    """(columns of the activations, weights for them) of which only the group's are not zero."""
    first = part * group // product.columns * product.columns
    columns = slice(first, first + product.columns)
    if not product.packed:
      return columns, weights.at[:, columns]
    weights = weights[:, columns]
    return columns, weights if group == product.columns else registers.only(weights, part * group - first, group)

  def step(slot, total):
    weights = tile.operand(slot, tile.load(slot), tile.whole)

    def multiply(part, total, before=None):
      """Starts the product of a part, and adds the part before while the tensor cores are at it."""
      def run(accumulator):
        columns, operand = of_group(weights, part)
        plgpu.wgmma(accumulator, operand, x_smem.at[slot, :, columns].T)
        following = total
        if before is not None:
          sums = plgpu.wgmma_accumulator_load(before, wait_n=1)
          if part == last:
            turns.leave()  # the last product is queued, and the next warpgroup's may be behind it
          following = tile.add(total, sums, slot, part - 1)
        if part < last:
          return multiply(part + 1, following, accumulator)
        sums = plgpu.wgmma_accumulator_load(accumulator, wait_n=0)
        if before is None:
          turns.leave()
        return tile.add(following, sums, slot, part)

      return pl.run_scoped(run, plgpu.ACC(tile.shape, product.sums))

    turns.wait()
    return multiply(0, total)

  return steps.each(step, tile.zeros(jnp.float32))
