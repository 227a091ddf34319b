"""What a warpgroup sums over the steps of a product, with one scale an output or with one for each group of inputs.

A product with one scale an output adds integers from the first input to the last, also where groups of inputs have
integers that go into the weights. With scales of groups, the sums of each start from zero, are scaled and added up in
float32, while the tensor cores are at the next group of the same step.
"""

import dataclasses
from typing import Any

from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from kernels import layouts
from kernels.mosaic import factors
from kernels.mosaic import partial_sums
from kernels.mosaic import registers
from kernels.mosaic import steps as steps_lib
from kernels.mosaic import tiles

# Copies land on multiples of 128 bytes.
_LEAST = 32
# Of a row of operands of a matrix instruction, one of which is in registers.
_LEAST_BYTES = 64
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


# How 4-bit weights meet activations of a dtype.
_UNPACK = {jnp.dtype(jnp.int8): registers.int4_times_16, jnp.dtype(jnp.float8_e4m3fn): registers.int4_as_float8,
           jnp.dtype(jnp.bfloat16): registers.int4_as_bfloat16}


class Product:
  """The operands of a product and their way into a warpgroup, the same for many tokens and for few.

  Attributes:
    arrays: the operands in memory, those of the groups and the unpacking behind x and w.
    copied: of these arrays, all but what unpacking needs of whole outputs.
    steps: of all inputs.
  """

  def __init__(self, x, w, groups: factors.Groups | None, layout: layouts.Layout, tile_k: int,
               unpacking: factors.Unpacking | None = None, fold: int = 1):
    """With `fold` runs of the inputs, steps have `tile_k` of each: see `partial_sums`.

    What steps have beyond the inputs, copies fill with zeros.
    """
    self.arrays = [x, w] + (groups.arrays() if groups else []) + ([unpacking.values] if unpacking else [])
    self.copied = len(self.arrays) - (unpacking is not None and unpacking.values.ndim == 1)
    self._fold = fold
    self._groups = groups
    self._unpacking = unpacking
    self._packed = layout is not layouts.Layout.ROWS
    self._width = tile_k
    self.steps = pl.cdiv(x.shape[1], fold * tile_k)
    self._parts = 1 if groups is None else self._parts_of(groups.scale)
    # Columns of a matrix instruction; of a smaller group, the others' weights are zeros.
    self._columns = max(tile_k // self._parts, _LEAST_BYTES // x.dtype.itemsize)
    self._unpack = _UNPACK[jnp.dtype(x.dtype)]
    self._dtype = jnp.int32 if x.dtype == jnp.int8 else jnp.float32

  @property
  def copies(self) -> int:
    """Transfers of a step, which its barrier counts."""
    rest = self.arrays[2 : self.copied]
    return 2 * self._fold + sum(self._transfers(array) * self._fold for array in rest)

  @property
  def dtype(self):
    """The dtype of the sums: int32, or float32 where groups are scaled or activations are not quantized."""
    return self._dtype if self._groups is None else jnp.float32

  def buffers(self, stages: int, outputs: int, tokens: int) -> list[Any]:
    """Shared memory of `stages` steps for blocks of `outputs` and `tokens`, a buffer for each array that is copied."""
    x, w, *rest = self.arrays[: self.copied]
    found = [tiles.smem((stages, tokens, self._width), x.dtype, self._columns),
             tiles.smem((stages, outputs, self._width // (2 if self._packed else 1)), w.dtype,
                        None if self._packed else self._columns)]
    for array in rest:
      parts = self._parts_of(array)
      shape = (self._fold, parts, max(tokens // self._fold, _LEAST)) if self._of_tokens(array) else (parts, outputs)
      found.append(plgpu.SMEM((stages, *shape), array.dtype))
    return found

  def copy(self, gmems, smems, slot, barrier, step, n, m, shared=None) -> None:
    """Starts the copies of a step: blocks of all operands from output n and token m on.

    Activations go to all blocks of the cluster's axis `shared`, each of which reads a part of them.
    """
    (x, w, *rest), (x_smem, w_smem, *rest_smem) = gmems[: self.copied], smems
    for gmem, smem, row in ((w, w_smem, n), (x, x_smem, m)):
      _, rows, width = smem.shape
      rows //= self._fold
      for run in range(self._fold):
        first = (run * self.steps + step) * width
        plgpu.copy_gmem_to_smem(
            gmem.at[pl.ds(row, rows), pl.ds(first, width)], smem.at[slot, pl.ds(run * rows, rows)], barrier,
            collective_axes=shared if gmem is x else None)
    for array, gmem, smem in zip(self.arrays[2:], rest, rest_smem):
      *_, parts, size = smem.shape
      for run in range(self._fold):
        first = (run * self.steps + step) * parts
        if self._of_tokens(array):
          plgpu.copy_gmem_to_smem(gmem.at[pl.ds(first, parts), pl.ds(m, size)], smem.at[slot, run], barrier)
          continue
        count, rows = parts // self._transfers(array), size // self._fold
        for part in range(0, parts, count):
          plgpu.copy_gmem_to_smem(
              gmem.at[pl.ds(first + part, count), pl.ds(n, rows)],
              smem.at[slot, pl.ds(part, count), pl.ds(run * rows, rows)], barrier)

  def held(self, gmems, n, rows: int) -> list[Any]:
    """What stays in registers for all steps: what unpacking needs of the outputs from n on, for the `rows` of them."""
    layout = partial_sums.layout(self._fold).reduce(1)
    return [partial_sums.of_rows(tiles.load(gmem.at[pl.ds(n, rows // self._fold)], layout, optimized=False), self._fold)
            for gmem in gmems[self.copied :]]

  def sums(self, steps: steps_lib.Steps, smems, outputs, shape: tuple[int, int], held: list[Any], turns: Turns):
    """Sums of `shape` [outputs, tokens] over steps.

    Args:
      steps: of the warpgroup.
      smems: the buffers.
      outputs: the slice of the block's outputs that are this warpgroup's.
      shape: of the result.
      held: what `held` returned for these outputs.
      turns: of the warpgroups at the tensor cores, if there are groups.
    """
    x_smem, w_smem, *rest = smems

    def load_weights(slot):
      weights = w_smem.at[slot, outputs]
      if self._unpacking is not None:
        # Behind the scales, if these have groups too.
        vectors = held or [tiles.load(rest[-1].at[slot, part, outputs], _OF_OUTPUTS)
                           for part in range(rest[-1].shape[1])]
        return self._unpacking.unpack(weights[...], vectors)
      return self._unpack(weights[...]) if self._packed else weights

    if self._groups is None:
      def whole(accumulator):
        def start(slot, weights):
          plgpu.wgmma(accumulator, weights if self._packed else w_smem.at[slot, outputs], x_smem.at[slot].T)

        steps.multiply(load_weights if self._packed else lambda slot: None, start)
        return accumulator[...]

      return pl.run_scoped(whole, plgpu.ACC(shape, self._dtype))

    def add(total, sums, slot, part):
      """Adds the scaled sums of a part."""
      along_n = lambda vector: lax.broadcast_in_dim(vector, shape, [0])
      load = lambda ref: tiles.load(ref.at[slot, part, outputs], _OF_OUTPUTS)
      total += sums.astype(jnp.float32) * along_n(load(rest[0]) * self._groups.factor)
      if self._groups.offset is not None:
        row_sums = partial_sums.side_by_side([
            tiles.load(rest[2].at[slot, run, part, pl.ds(0, shape[1] // self._fold)], _OF_TOKENS)
            for run in range(self._fold)])
        total += along_n(load(rest[1])) * lax.broadcast_in_dim(row_sums, shape, [1])
      return total

    def scaled(slot, total):
      weights = load_weights(slot)
      last = self._parts - 1

      def multiply(part, total, before=None):
        """Starts the product of a part, and adds the part before while the tensor cores are at it."""
        def run(accumulator):
          columns, operand = self._part(weights, part)
          plgpu.wgmma(accumulator, operand, x_smem.at[slot, :, columns].T)
          following = total
          if before is not None:
            sums = plgpu.wgmma_accumulator_load(before, wait_n=1)
            if part == last:
              turns.leave()  # the last product is queued, and the next warpgroup's may be behind it
            following = add(total, sums, slot, part - 1)
          if part < last:
            return multiply(part + 1, following, accumulator)
          sums = plgpu.wgmma_accumulator_load(accumulator, wait_n=0)
          if before is None:
            turns.leave()
          return add(following, sums, slot, part)

        return pl.run_scoped(run, plgpu.ACC(shape, self._dtype))

      turns.wait()
      return multiply(0, total)

    return steps.each(scaled, plgpu.layout_cast(jnp.zeros(shape, jnp.float32), plgpu.Layout.WGMMA))

  def _parts_of(self, array) -> int:
    """Groups of a step, of an array with an entry for each group of inputs."""
    return self._width * len(array) // self.arrays[0].shape[1]

  def _transfers(self, array) -> int:
    """Transfers for the groups of one step and run: one, or, where runs lie side by side, one for each group."""
    return 1 if self._fold == 1 or self._of_tokens(array) else self._parts_of(array)

  def _of_tokens(self, array) -> bool:
    """Whether an array of groups has columns of tokens, not of outputs."""
    return self._groups is not None and array is self._groups.row_sums

  def _part(self, weights, part: int):
    """(columns of the activations, weights for them) of which one group's weights are not zero."""
    group = self._width // self._parts
    first = part * group // self._columns * self._columns
    columns = slice(first, first + self._columns)
    if not self._packed:
      return columns, weights.at[:, columns]
    weights = weights[:, columns]
    return columns, weights if group == self._columns else registers.only(weights, part * group - first, group)
