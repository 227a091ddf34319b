"""A kernel that reads weights as products of few tokens do, and makes nothing of them: what these cannot fall below.

Copies to memory at full bandwidth move gigabytes; a kernel of some microseconds also starts, waits for its first bytes
and ends.
"""

import jax
from jax import lax
from jax.experimental import pallas as pl
import jax.numpy as jnp

from kernels.mosaic import configs

_MOST_STAGES = 32  # as many barriers as a block may have


def read(codes):
  """Reads int8 [N, bytes of an output] into shared memory, and writes [1, N] of whatever, bfloat16.

  Raises:
    NotImplementedError: N or the bytes are no multiples of 64.
  """
  from jax.experimental.pallas import mosaic_gpu as plgpu  # pylint: disable=g-import-not-at-top
  from kernels.mosaic import tiles  # pylint: disable=g-import-not-at-top
  outputs, width = codes.shape
  if outputs % 64 or width % 64:
    raise NotImplementedError(f'{outputs} outputs of {width} bytes are not whole tiles')
  rows = 64 if outputs // 64 > configs.CORES else 32
  size = next(size for size in (256, 128, 64) if width % size == 0)
  steps, blocks = width // size, outputs // rows
  room = configs.shared_memory_beside(min(configs.MOST_BLOCKS, -(-blocks // configs.CORES)))
  stages = min(steps, room // (rows * size), _MOST_STAGES)

  def kernel(codes_gmem, out_gmem, codes_smem, out_smem, full):
    n = lax.axis_index('outputs') * rows

    def start(step):
      slot = lax.rem(step, stages)
      plgpu.copy_gmem_to_smem(
          codes_gmem.at[pl.ds(n, rows), pl.ds(step * size, size)], codes_smem.at[slot], full.at[slot])

    for step in range(stages):
      start(jnp.int32(step))

    @pl.loop(0, steps)
    def _(step):
      plgpu.barrier_wait(full.at[lax.rem(step, stages)])
      pl.when(step + stages < steps)(lambda: start(step + stages))

    plgpu.copy_smem_to_gmem(out_smem, out_gmem.at[:, pl.ds(n, rows)])
    plgpu.wait_smem_to_gmem(0)

  return plgpu.kernel(
      kernel, out_type=jax.ShapeDtypeStruct((1, outputs), jnp.bfloat16),
      scratch_types=(plgpu.SMEM((stages, rows, size), jnp.int8), plgpu.SMEM((1, rows), jnp.bfloat16),
                     plgpu.Barrier(num_arrivals=1, num_barriers=stages)),
      grid=(blocks,), grid_names=('outputs',), compiler_params=tiles.PARAMS)(codes)
