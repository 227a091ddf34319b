"""What a warpgroup sums over the steps of a product, with one scale an output or with one for each group of inputs.

A product with one scale an output adds integers from the first input to the last. With groups, the sums of a step are
scaled and added up in float32, and the next step starts from zero: a step is a group, or a part of one.
"""

import dataclasses
from typing import Any

from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from kernels import prepack
from kernels.mosaic import registers
from kernels.mosaic import tiles

# Copies land on multiples of 128 bytes.
_LEAST = 32
_OF_OUTPUTS = plgpu.Layout.WGMMA.reduce(1)
_OF_TOKENS = plgpu.Layout.WGMMA.reduce(0)


@dataclasses.dataclass(frozen=True)
class Groups:
  """Scales of the steps of a product: sums over steps of scale[s, n] * sums[s, n, m] + offset[s, n] * row_sum[s, m].

  Attributes:
    scale: float32 [K / tile_k, N].
    offset: float32 [K / tile_k, N], or None for zero.
    row_sums: float32 [K / tile_k, M], M in whole tiles and at least 32, or None with `offset`.
    factor: a Python number that belongs to the scales.
  """

  scale: Any
  offset: Any = None
  row_sums: Any = None
  factor: float = 1.0

  def arrays(self) -> list[Any]:
    """The arrays there are, in the order in which a kernel gets them."""
    return [array for array in (self.scale, self.offset, self.row_sums) if array is not None]


# How 4-bit weights meet activations of a dtype.
_UNPACK = {jnp.dtype(jnp.int8): registers.int4_times_16, jnp.dtype(jnp.float8_e4m3fn): registers.int4_as_float8,
           jnp.dtype(jnp.bfloat16): registers.int4_as_bfloat16}


class Product:
  """The operands of a product and their way into a warpgroup, the same for many tokens and for few.

  Attributes:
    arrays: the operands in memory, those of the groups behind x and w.
    copies: transfers of a step, which its barrier counts.
  """

  def __init__(self, x, w, groups: Groups | None, layout: prepack.Layout, tile_k: int):
    self.arrays = [x, w] + (groups.arrays() if groups else [])
    self.copies = len(self.arrays)
    self._groups = groups
    self._packed = layout is not prepack.Layout.ROWS
    self._width = tile_k
    self._unpack = _UNPACK[jnp.dtype(x.dtype)]
    self._dtype = jnp.int32 if x.dtype == jnp.int8 else jnp.float32

  @property
  def dtype(self):
    """The dtype of the sums: int32, or float32 where groups are scaled or activations are not quantized."""
    return self._dtype if self._groups is None else jnp.float32

  def buffers(self, stages: int, outputs: int, tokens: int) -> list[Any]:
    """Shared memory of `stages` steps for blocks of `outputs` and `tokens`, a buffer for each of `arrays`."""
    x, w, *rest = self.arrays
    found = [tiles.smem((stages, tokens, self._width), x.dtype),
             tiles.smem((stages, outputs, self._width // (2 if self._packed else 1)), w.dtype)]
    for array in rest:
      of_tokens = array is self._groups.row_sums
      found.append(plgpu.SMEM((stages, max(tokens, _LEAST) if of_tokens else outputs), jnp.float32))
    return found

  def copy(self, gmems, smems, slot, barrier, step, n, m, shared=None) -> None:
    """Starts the copies of a step: blocks of all operands from output n and token m on.

    Activations go to all blocks of the cluster's axis `shared`, each of which reads a part of them.
    """
    (x, w, *rest), (x_smem, w_smem, *rest_smem) = gmems, smems
    for gmem, smem, row in ((w, w_smem, n), (x, x_smem, m)):
      _, rows, width = smem.shape
      plgpu.copy_gmem_to_smem(gmem.at[pl.ds(row, rows), pl.ds(step * width, width)], smem.at[slot], barrier,
                              collective_axes=shared if gmem is x else None)
    for index, (gmem, smem) in enumerate(zip(rest, rest_smem)):
      first = m if index == 2 else n
      plgpu.copy_gmem_to_smem(gmem.at[step, pl.ds(first, smem.shape[1])], smem.at[slot], barrier)

  def sums(self, loop, smems, outputs, shape: tuple[int, int]):
    """Sums of `shape` [outputs, tokens] over the steps that `loop` runs.

    Args:
      loop: `loop(body, carry)` calls `carry = body(slot, carry)` for each step when its operands are there.
      smems: the buffers.
      outputs: the slice of the block's outputs that are this warpgroup's.
      shape: of the result.
    """
    x_smem, w_smem, *rest = smems

    def multiply(accumulator, slot):
      weights = w_smem.at[slot, outputs]
      weights = self._unpack(weights[...]) if self._packed else weights
      plgpu.wgmma(accumulator, weights, x_smem.at[slot].T)
      plgpu.wgmma_wait(0)

    if self._groups is None:
      def whole(accumulator):
        loop(lambda slot, carry: multiply(accumulator, slot), None)
        return accumulator[...]

      return pl.run_scoped(whole, plgpu.ACC(shape, self._dtype))

    def scaled(slot, total):
      def part(accumulator):
        multiply(accumulator, slot)
        return accumulator[...]

      sums = pl.run_scoped(part, plgpu.ACC(shape, self._dtype)).astype(jnp.float32)
      load = lambda ref: tiles.load(ref.at[slot, outputs], _OF_OUTPUTS)
      along_n = lambda vector: lax.broadcast_in_dim(vector, shape, [0])
      total += sums * along_n(load(rest[0]) * self._groups.factor)
      if self._groups.offset is not None:
        row_sums = lax.broadcast_in_dim(tiles.load(rest[2].at[slot, pl.ds(0, shape[1])], _OF_TOKENS), shape, [1])
        total += along_n(load(rest[1])) * row_sums
      return total

    return loop(scaled, plgpu.layout_cast(jnp.zeros(shape, jnp.float32), plgpu.Layout.WGMMA))

