"""Attention over some of the slots: what warpgroups and blocks pass on, and how it becomes that over all of them.

A part is three arrays, float32 [features, columns] in the layout of an accumulator: mixed values, not divided yet; the
score that their weights are relative to; and the sum of these weights. The last two are the same in all rows.
"""

from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from kernels.mosaic import tiles


def memory(count: int, features: int, columns: int):
  """Shared memory for as many parts."""
  return plgpu.SMEM((count, 3, features, columns), jnp.float32)


def store(part, smem, put) -> None:
  """Calls `put(array, reference)` for each array and its place in the memory of a part."""
  for i, array in enumerate(part):
    put(array, smem.at[i])


def load(smem):
  """The part in its memory."""
  return [tiles.load(smem.at[i], plgpu.Layout.WGMMA, optimized=False) for i in range(3)]


def joined(one, other):
  """The part of the slots of both."""
  top = lax.max(one[1], other[1])
  scales = [jnp.exp2(part[1] - top) for part in (one, other)]
  mixed, total = (sum(scale * part[i] for scale, part in zip(scales, (one, other))) for i in (0, 2))
  return mixed, top, total
