"""The product of 8-bit codes for few tokens: bound by the bytes of the weights, which are read once.

Computes y^T = W x^T for 64 outputs a block of threads. The inputs are dealt out in steps to the warpgroups of a block
and, where the blocks are too few to keep the memory busy, to the `split` blocks of a cluster; each warpgroup sums its
own steps from its own stages, and the first one of the cluster adds the integers up, which is exact in any order.
"""

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from kernels import prepack
from kernels.mosaic import configs
from kernels.mosaic import epilogue
from kernels.mosaic import registers
from kernels.mosaic import tiles

def matmul(x, w, terms: epilogue.Terms, *, layout, out_dtype, config: configs.Decode):
  """The scaled product.

  Args:
    x: int8 [M, K], M at least `config.tile_m`, K a multiple of `config.tile_k`.
    w: int8 [N, K] (`ROWS`) or [N, K / 2] (`INT4`), N a multiple of 64.
    terms: the epilogue's vectors, those of tokens as long as whole tiles.
    layout: of `w`.
    out_dtype: bfloat16, float16 or float32.
    config: the tiling.

  Returns:
    [M, N] of `out_dtype`, with rows to spare where its numbers have 32 bits.
  """
  (tokens, inputs), outputs = x.shape, w.shape[0]
  per_byte = 2 if layout is prepack.Layout.INT4 else 1
  groups, stages, width = config.warpgroups, config.stages, config.tile_k
  steps, lanes = inputs // width, groups * config.split
  chunk = epilogue.Chunk.of(out_dtype, config.TILE_N, config.tile_m)
  partial = jax.ShapeDtypeStruct((config.TILE_N, config.tile_m), jnp.int32)

  def kernel(x_gmem, w_gmem, *rest):
    vectors, (out_gmem, x_smem, w_smem, out_smem, sums_smem, full, free, summed) = rest[:-8], rest[-8:]
    group, block = lax.axis_index('group'), lax.axis_index('split')
    n, m = lax.axis_index('outputs') * config.TILE_N, lax.axis_index('tokens') * config.tile_m

    def copy():
      plgpu.set_max_registers(40, action='decrease')

      @pl.loop(0, pl.cdiv(steps, lanes))
      def _(turn):
        for lane in range(groups):
          step = turn * lanes + block * groups + lane
          slot = lax.rem(turn, stages) * groups + lane

          @pl.when(step < steps)
          def _():
            @pl.when(turn >= stages)
            def _():
              plgpu.barrier_wait(free.at[slot])

            for gmem, smem, row, size in ((w_gmem, w_smem, n, width // per_byte), (x_gmem, x_smem, m, width)):
              source = gmem.at[pl.ds(row, smem.shape[1]), pl.ds(step * size, size)]
              plgpu.copy_gmem_to_smem(source, smem.at[slot], full.at[slot])

      # The last arrivals are waited for too, so that no barrier is left between two phases.
      for lane in range(groups):
        turns = lax.div(steps - block * groups - lane + lanes - 1, lanes)

        @pl.loop(lax.max(0, turns - stages), turns)
        def _(turn):
          plgpu.barrier_wait(free.at[lax.rem(turn, stages) * groups + lane])

    def compute():
      plgpu.set_max_registers(tiles.registers(groups), action='increase')
      lane = block * groups + group
      loaded = epilogue.load(terms, vectors, chunk, n, m)

      def accumulate(accumulator):
        @pl.loop(0, lax.div(steps - lane + lanes - 1, lanes))
        def _(turn):
          slot = lax.rem(turn, stages) * groups + group
          plgpu.barrier_wait(full.at[slot])
          weights = w_smem.at[slot]
          weights = registers.int4_times_16(weights[...]) if per_byte == 2 else weights
          plgpu.wgmma(accumulator, weights, x_smem.at[slot].T)
          plgpu.wgmma_wait(0)
          plgpu.barrier_arrive(free.at[slot])

        return accumulator[...]

      sums = pl.run_scoped(accumulate, plgpu.ACC(partial.shape, partial.dtype))

      if lanes > 1:
        @pl.when(lane > 0)
        def _():
          plgpu.async_store_smem(
              sums, sums_smem.at[lane - 1], summed, cluster_idx=0, cluster_dim='split', optimized=False)

      @pl.when(lane == 0)
      def _():
        total = sums
        if lanes > 1:
          plgpu.barrier_wait(summed)
          for other in range(lanes - 1):
            total += tiles.load(sums_smem.at[other], plgpu.Layout.WGMMA, optimized=False)
        epilogue.store(total, loaded, out_gmem, out_smem, chunk, n, m)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)

    lax.cond(group == groups, copy, compute)

  call = plgpu.kernel(
      kernel,
      out_type=jax.ShapeDtypeStruct(chunk.shape(tokens, outputs, config.tile_m), out_dtype),
      scratch_types=(
          tiles.smem((stages * groups, config.tile_m, width), jnp.int8),
          tiles.smem((stages * groups, config.TILE_N, width // per_byte), jnp.int8),
          tiles.smem(chunk.buffer, out_dtype),
          plgpu.SMEM((max(1, lanes - 1), *partial.shape), partial.dtype),
          plgpu.Barrier(num_arrivals=2, num_barriers=stages * groups),
          plgpu.Barrier(num_arrivals=1, num_barriers=stages * groups),
          plgpu.Barrier(num_arrivals=max(1, lanes - 1))),
      grid=(outputs // config.TILE_N, pl.cdiv(tokens, config.tile_m)), grid_names=('outputs', 'tokens'),
      cluster=(config.split,), cluster_names=('split',), num_threads=groups + 1, thread_name='group',
      compiler_params=tiles.PARAMS)
  return chunk.restore(call(x, w, *terms.vectors()))
