"""What a block of attention makes of arrays on their way: tokens as they turn, columns and heads as memory has them."""

from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from kernels.mosaic import tiles


def rotated(parts, angles):
  """The halves of a query or a key, turned (`kernels.attention.rotate`), in their dtype.

  Args:
    parts: two arrays [features / 2].
    angles: cosine and sine, float32 [features / 2], or nothing for no rotation.
  """
  if not angles:
    return parts
  dtype, (cos, sin), (first, second) = parts[0].dtype, angles, [part.astype(jnp.float32) for part in parts]
  return [(first * cos - second * sin).astype(dtype), (second * cos + first * sin).astype(dtype)]


def turned(a, dtype):
  """An accumulator as operands of the dtype, with two numbers of a column side by side, as rows of memory have them."""
  a = plgpu.layout_cast(a.astype(dtype), plgpu.Layout.WGMMA)  # inference does not find it
  return plgpu.layout_cast(a, plgpu.Layout.WGMMA_TRANSPOSED)


def store(head, out, put, smem) -> None:
  """Stores a mixed head, [features] in the layout of an accumulator's rows.

  Args:
    head: numbers, or codes, int8.
    out: reference to memory.
    put: (array, reference), stores such an array.
    smem: reference to shared memory for codes, through which they go: warps have no whole sectors of them.
  """
  if head.dtype != jnp.int8:
    put(head, out)
    return
  plgpu.commit_smem()  # all have read the head before
  put(head, smem)
  plgpu.commit_smem()
  out[...] = tiles.load(smem, plgpu.Layout.WG_STRIDED(head.shape, vec_size=1), optimized=False)
