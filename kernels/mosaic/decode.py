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

from kernels.mosaic import configs
from kernels.mosaic import epilogue
from kernels.mosaic import products
from kernels.mosaic import tiles

def matmul(
    x, w, terms: epilogue.Terms, groups, *, layout, out_dtype, config: configs.Decode, unpacking=None,
):  # pyformat: disable
  """The scaled product.

  Args:
    x: int8 [M, K], or float8_e4m3fn with groups; M below 8 or a multiple of 8, K a multiple of `config.tile_k`.
    w: int8 [N, K] (`ROWS`) or [N, K / 2] (`INT4`, `DINT4`), N a multiple of 64.
    terms: the epilogue's vectors.
    groups: `products.Groups`, or None for one scale an output.
    layout: of `w`.
    out_dtype: bfloat16, float16 or float32.
    config: the tiling.
    unpacking: `products.Unpacking` of codes whose integers depend on their output or group, or None.

  Returns:
    [M, N] of `out_dtype`, with rows to spare where its numbers have 32 bits.
  """
  (tokens, inputs), outputs = x.shape, w.shape[0]
  product = products.Product(x, w, groups, layout, config.tile_k, unpacking)
  warpgroups, stages = config.warpgroups, config.stages
  steps, lanes = inputs // config.tile_k, warpgroups * config.split
  chunk = epilogue.Chunk.of(out_dtype, config.TILE_N, config.tile_m)
  shape = config.TILE_N, config.tile_m
  vectors, of_tokens = terms.vectors(), terms.of_tokens()

  def kernel(*refs):
    gmems, refs = refs[: len(product.arrays)], refs[len(product.arrays) :]
    vector_refs, (out_gmem, *refs) = refs[: len(vectors)], refs[len(vectors) :]
    *smems, tokens_smem, out_smem, sums_smem, full, free, summed, scales = refs
    group, block = lax.axis_index('group'), lax.axis_index('split')
    n, m = lax.axis_index('outputs') * config.TILE_N, lax.axis_index('tokens') * config.tile_m

    def turns(lane):
      """Steps of a warpgroup: every `lanes`-th one."""
      return lax.div(steps - lane + lanes - 1, lanes)

    def copy():
      plgpu.set_max_registers(tiles.COPYING, action='decrease')
      # Read by a copy, for which the vectors need not cover a whole tile.
      for i, index in enumerate(of_tokens):
        plgpu.copy_gmem_to_smem(vector_refs[index].at[pl.ds(m, tokens_smem.shape[1])], tokens_smem.at[i], scales)

      @pl.loop(0, pl.cdiv(steps, lanes))
      def _(turn):
        for i in range(warpgroups):
          step = turn * lanes + block * warpgroups + i
          slot = lax.rem(turn, stages) * warpgroups + i

          @pl.when(step < steps)
          def _():
            @pl.when(turn >= stages)
            def _():
              plgpu.barrier_wait(free.at[slot])

            product.copy(gmems, smems, slot, full.at[slot], step, n, m)

      # The last arrivals are waited for too, so that no barrier is left between two phases.
      for i in range(warpgroups):
        count = turns(block * warpgroups + i)

        @pl.loop(lax.max(0, count - stages), count)
        def _(turn):
          plgpu.barrier_wait(free.at[lax.rem(turn, stages) * warpgroups + i])

    def compute():
      plgpu.set_max_registers(tiles.registers(warpgroups), action='increase')
      lane = block * warpgroups + group
      if of_tokens:
        plgpu.barrier_wait(scales)
      found = {index: tokens_smem.at[i] for i, index in enumerate(of_tokens)}
      loaded = epilogue.load(terms, [found.get(i, ref) for i, ref in enumerate(vector_refs)], chunk, n, 0)

      def loop(body, carry):
        def step(turn, carry):
          slot = lax.rem(turn, stages) * warpgroups + group
          plgpu.barrier_wait(full.at[slot])
          carry = body(slot, carry)
          plgpu.barrier_arrive(free.at[slot])
          return carry

        return lax.fori_loop(0, turns(lane), step, carry)

      held = product.held(gmems, n, config.TILE_N)
      sums = product.sums(loop, smems, pl.ds(0, config.TILE_N), shape, held, products.Turns())
      if lanes > 1:
        @pl.when(lane > 0)
        def _():
          if config.split > 1:
            plgpu.async_store_smem(
                sums, sums_smem.at[lane - 1], summed, cluster_idx=0, cluster_dim='split', optimized=False)
          else:  # the instruction above is illegal where there is no cluster
            sums_smem[lane - 1] = sums
            plgpu.barrier_arrive(summed)

      @pl.when(lane == 0)
      def _():
        total = sums
        if lanes > 1:
          plgpu.barrier_wait(summed)
          for other in range(lanes - 1):
            total += tiles.load(sums_smem.at[other], plgpu.Layout.WGMMA, optimized=False)
        epilogue.store(total, loaded, out_gmem, out_smem, chunk, n, m)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)

    lax.cond(group == warpgroups, copy, compute)

  call = plgpu.kernel(
      kernel,
      out_type=jax.ShapeDtypeStruct(chunk.shape(tokens, outputs, config.tile_m), out_dtype),
      scratch_types=(
          *product.buffers(stages * warpgroups, config.TILE_N, config.tile_m),
          plgpu.SMEM((max(1, len(of_tokens)), max(32, config.tile_m)), jnp.float32),
          tiles.smem(chunk.buffer, out_dtype),
          plgpu.SMEM((max(1, lanes - 1), *shape), product.dtype),
          plgpu.Barrier(num_arrivals=product.copies, num_barriers=stages * warpgroups),
          plgpu.Barrier(num_arrivals=1, num_barriers=stages * warpgroups),
          plgpu.Barrier(num_arrivals=max(1, lanes - 1)),
          plgpu.Barrier(num_arrivals=max(1, len(of_tokens)))),
      grid=(outputs // config.TILE_N, pl.cdiv(tokens, config.tile_m)), grid_names=('outputs', 'tokens'),
      cluster=(config.split,), cluster_names=('split',), num_threads=warpgroups + 1, thread_name='group',
      compiler_params=tiles.PARAMS)
  return chunk.restore(call(*product.arrays, *vectors))
