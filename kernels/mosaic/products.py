"""The operands of a product and their way into shared memory, step by step."""

from typing import Any

from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from kernels import layouts
from kernels.mosaic import configs
from kernels.mosaic import factors
from kernels.mosaic import partial_sums
from kernels.mosaic import registers
from kernels.mosaic import tiles

# Of a row of operands of a matrix instruction, one of which is in registers.
_LEAST_BYTES = 64

# How 4-bit weights meet activations of a dtype.
_UNPACK = {jnp.dtype(jnp.int8): registers.int4_times_16, jnp.dtype(jnp.float8_e4m3fn): registers.int4_as_float8,
           jnp.dtype(jnp.bfloat16): registers.int4_over_64}


class Product:
  """The operands of a product, the same for many tokens and for few.

  Attributes:
    MOVED: of `arrays`, those whose steps are rows of inputs, in the order in which they are copied.
    arrays: the operands in memory, those of the groups and the unpacking behind x and w.
    copied: of these arrays, all but what unpacking needs of whole outputs.
    steps: of all inputs.
    width: inputs of a step, of each run.
    fold: runs of the inputs.
    warps: whether warps multiply for themselves.
    groups: as given.
    parts: groups of a step.
    columns: of an instruction of a warpgroup; of a smaller group, the others' weights are zeros.
    packed: whether weights have 4 bits.
    unpack: makes operands of packed weights; `unpacking`, if there is any, makes them by vectors.
    sums: the dtype of an instruction's, int32 or float32.
  """

  MOVED = 1, 0

  def __init__(self, x, w, groups: factors.Groups | None, layout: layouts.Layout, tile_k: int,
               unpacking: factors.Unpacking | None = None, fold: int = 1, warps: bool = False):
    """With `fold` runs of the inputs, steps have `tile_k` of each: see `partial_sums`.

    What steps have beyond the inputs, copies fill with zeros. `warps` multiply for themselves, or those of a warpgroup
    together: see `mma`.
    """
    self.arrays = [x, w] + (groups.arrays() if groups else []) + ([unpacking.values] if unpacking else [])
    self.copied = len(self.arrays) - (unpacking is not None and unpacking.values.ndim == 1)
    self.width, self.fold, self.warps, self.groups = tile_k, fold, warps, groups
    self.packed, self.unpacking = layout is not layouts.Layout.ROWS, unpacking
    self.steps = pl.cdiv(x.shape[1], fold * tile_k)
    self.parts = 1 if groups is None else self._parts_of(groups.scale)
    self.columns = max(tile_k // self.parts, _LEAST_BYTES // x.dtype.itemsize)
    self.unpack = _UNPACK[jnp.dtype(x.dtype)]
    self.sums = jnp.int32 if x.dtype == jnp.int8 else jnp.float32

  @property
  def copies(self) -> int:
    """Transfers of a step, which its barrier counts."""
    rest = self.arrays[2 : self.copied]
    return len(self.MOVED) * self.fold + sum(self._transfers(array) * self.fold for array in rest)

  @property
  def dtype(self):
    """The dtype of the sums: int32, or float32 where groups are scaled or activations are not quantized."""
    return self.sums if self.groups is None else jnp.float32

  def buffers(self, stages: int, outputs: int, tokens: int) -> list[Any]:
    """Shared memory of `stages` steps for blocks of `outputs` and `tokens`, a buffer for each array that is copied."""
    x, w, *rest = self.arrays[: self.copied]
    columns = None if self.warps else self.columns
    found = [tiles.smem((stages, self.fold * tokens, self.width), x.dtype, columns),
             tiles.smem((stages, outputs, self.width // (2 if self.packed else 1)), w.dtype,
                        None if self.packed else columns)]
    for array in rest:
      parts = self._parts_of(array)
      shape = (self.fold, parts, configs.whole_row(tokens)) if self._of_tokens(array) else (parts, outputs)
      found.append(plgpu.SMEM((stages, *shape), array.dtype))
    return found

  def copy(self, gmems, smems, slot, barrier, step, n, m, shared=None) -> None:
    """Starts the copies of a step: blocks of all operands from output n and token m on.

    Activations go to all blocks of the cluster's axis `shared`, each of which reads a part of them.
    """
    (_, _, *rest), (_, _, *rest_smem) = gmems[: self.copied], smems
    for index in self.MOVED:
      gmem, smem, row = gmems[index], smems[index], (m, n)[index]
      _, rows, width = smem.shape
      rows //= self.fold
      for run in range(self.fold):
        first = (run * self.steps + step) * width
        plgpu.copy_gmem_to_smem(
            gmem.at[pl.ds(row, rows), pl.ds(first, width)], smem.at[slot, pl.ds(run * rows, rows)], barrier,
            collective_axes=None if index else shared)
    for array, gmem, smem in zip(self.arrays[2:], rest, rest_smem):
      *_, parts, size = smem.shape
      for run in range(self.fold):
        first = (run * self.steps + step) * parts
        if self._of_tokens(array):
          plgpu.copy_gmem_to_smem(gmem.at[pl.ds(first, parts), pl.ds(m, size)], smem.at[slot, run], barrier)
          continue
        count, rows = parts // self._transfers(array), size // self.fold
        for part in range(0, parts, count):
          plgpu.copy_gmem_to_smem(
              gmem.at[pl.ds(first + part, count), pl.ds(n, rows)],
              smem.at[slot, pl.ds(part, count), pl.ds(run * rows, rows)], barrier)

  def held(self, gmems, n, rows: int) -> list[Any]:
    """What stays in registers for all steps: what unpacking needs of the outputs from n on, for the `rows` of them."""
    layout = partial_sums.layout(self.fold).reduce(1)
    return [partial_sums.of_rows(tiles.load(gmem.at[pl.ds(n, rows // self.fold)], layout, optimized=False), self.fold)
            for gmem in gmems[self.copied :]]

  def _parts_of(self, array) -> int:
    """Groups of a step, of an array with an entry for each group of inputs."""
    return self.width * len(array) // self.arrays[0].shape[1]

  def _transfers(self, array) -> int:
    """Transfers for the groups of one step and run: one, or, where runs lie side by side, one for each group."""
    return 1 if self.fold == 1 or self._of_tokens(array) else self._parts_of(array)

  def _of_tokens(self, array) -> bool:
    """Whether an array of groups has columns of tokens, not of outputs."""
    return self.groups is not None and array is self.groups.row_sums
