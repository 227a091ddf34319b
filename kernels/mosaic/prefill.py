"""The product of 8-bit codes for many tokens: persistent, warp-specialized, bound by the tensor cores.

Computes y^T = W x^T, so that the weights are the operand that a warpgroup holds in registers, where 4-bit codes are
unpacked, and the activations the one in shared memory. One warpgroup copies tiles for all others, ahead by `stages`
steps across the borders of output tiles; each of the others owns `tile_n` outputs of all `tile_m` tokens of a tile.
"""

import functools

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels.mosaic import configs
from kernels.mosaic import epilogue
from kernels.mosaic import products
from kernels.mosaic import results
from kernels.mosaic import steps as steps_lib
from kernels.mosaic import sums as sums_lib
from kernels.mosaic import tiles


# Tokens of a tile up to which the vectors of its terms are loaded first, and results of 16 bits stored from registers.
_EARLY = 64
# Stages from which on steps overlap, which keeps one more of them occupied: with three, 256 tokens of 4096 x 14336 took
# 28.4 us instead of 25.4.
_OVERLAPPING = 4


def matmul(
    x, w, terms: epilogue.Terms, groups, *, layout, out_dtype, config: configs.Prefill, unpacking=None,
):  # pyformat: disable
  """The scaled product.

  The arguments are those of `decode.matmul`, but all rows count, N is a multiple of `config.outputs` times
  `config.cluster`, and vectors of tokens are as long as whole tiles.

  Returns:
    [M, N] of `out_dtype`, with rows to spare where its numbers have 32 bits.
  """
  (tokens, inputs), outputs = x.shape, w.shape[0]
  product = products.Product(x, w, groups, layout, config.tile_k, unpacking)
  steps, stages = inputs // config.tile_k, config.stages
  pair = config.outputs * config.cluster
  grid = outputs // pair, pl.cdiv(tokens, config.tile_m)
  clusters = min(configs.CORES // config.cluster, grid[0] * grid[1])
  shared = 'member' if config.cluster > 1 else None
  chunk = epilogue.Chunk.of(out_dtype, config.tile_n, config.tile_m)
  if direct := chunk.transposed and config.tile_m <= _EARLY:
    chunk = epilogue.Chunk(config.tile_n, config.tile_m, 1, True)
  vectors = terms.vectors()

  def kernel(*refs, smems, out_smem, full, free, barriers):
    gmems, refs = refs[: len(product.arrays)], refs[len(product.arrays) :]
    vector_refs, (out_gmem,) = refs[: len(vectors)], refs[len(vectors) :]
    group = lax.axis_index('group')

    def each_tile(body):
      """Runs `body(first output, first token, steps before)` for every tile of this block."""
      @plgpu.nd_loop((grid[0] * grid[1],), collective_axes='cluster')
      def _(loop):
        n, m = plgpu.planar_snake(loop.index[0], grid, 0, config.panel)
        first = n * pair + lax.axis_index('member') * config.outputs
        body(first, m * config.tile_m, loop.local_index * steps)

    def copy():
      plgpu.set_max_registers(tiles.COPYING, action='decrease')

      def copy_tile(n, m, before):
        @pl.loop(0, steps)
        def _(k):
          slot = lax.rem(before + k, stages)

          @pl.when(before + k >= stages)
          def _():
            plgpu.barrier_wait(free.at[slot])

          product.copy(gmems, smems, slot, full.at[slot], k, n, m, shared)

      each_tile(copy_tile)
      # The last arrivals are waited for too: no barrier is left between two phases, or used when its block is gone.
      total = lax.div(grid[0] * grid[1] - lax.axis_index('cluster') + clusters - 1, clusters) * steps

      @pl.loop(lax.max(0, total - stages), total)
      def _(step):
        plgpu.barrier_wait(free.at[lax.rem(step, stages)])

    def compute():
      plgpu.set_max_registers(tiles.registers(config.warpgroups), action='increase')
      turns = sums_lib.Turns()
      if groups is not None:
        turns = sums_lib.Turns(barriers, group, lax.rem(group + 1, config.warpgroups))
        # The last warpgroup lets the first one in, now and after each step; the one time too many is waited for below.
        pl.when(group == config.warpgroups - 1)(turns.leave)

      def compute_tile(n, m, before):
        slot = lambda k: lax.rem(before + k, stages)

        def arrive(k):
          plgpu.barrier_wait(full.at[found := slot(k)])
          return found

        leave = lambda k: plgpu.barrier_arrive(free.at[slot(k)])
        mine = group * config.tile_n
        load = lambda: epilogue.load(terms, vector_refs, chunk, n + mine, m)
        # Memory answers while the sums are made, where there are registers for its answers.
        loaded = load() if config.tile_m <= _EARLY else None
        held = product.held(gmems, n + mine, config.tile_n)
        tile = sums_lib.Tile(
            product, smems, pl.ds(mine, config.tile_n), (config.tile_n, config.tile_m), held)
        sums = sums_lib.over(steps_lib.Steps(steps, arrive, leave, overlap=stages >= _OVERLAPPING), tile, turns)
        if direct:
          scaled = epilogue.apply(sums, loaded, chunk, 0).astype(out_dtype)
          results.store(scaled, out_gmem, None, fold=1, gated=False, n=n + mine, m=m)
        else:
          epilogue.store(sums, loaded or load(), out_gmem, out_smem.at[group], chunk, n + mine, m)

      each_tile(compute_tile)
      pl.when(group == 0)(turns.wait)
      plgpu.wait_smem_to_gmem(0, wait_read_only=True)

    lax.cond(group == config.warpgroups, copy, compute)

  # What all blocks of a cluster read is overwritten when all have read it.
  consumed = functools.partial(plgpu.ClusterBarrier, collective_axes=(shared,)) if shared else plgpu.Barrier
  call = plgpu.kernel(
      kernel,
      out_type=jax.ShapeDtypeStruct(chunk.shape(tokens, outputs, config.tile_m), out_dtype),
      scratch_types=dict(
          smems=product.buffers(stages, config.outputs, config.tile_m),
          out_smem=None if direct else tiles.smem((config.warpgroups, *chunk.buffer), out_dtype),
          full=plgpu.Barrier(num_arrivals=product.copies, num_barriers=stages),
          free=consumed(num_arrivals=config.warpgroups, num_barriers=stages),
          barriers=plgpu.Barrier(num_arrivals=1, num_barriers=config.warpgroups)),
      grid=(clusters,), grid_names=('cluster',), cluster=(config.cluster,), cluster_names=('member',),
      num_threads=config.warpgroups + 1, thread_name='group', compiler_params=tiles.PARAMS,
      kernel_name=f'prefill_{outputs}x{inputs}')
  return chunk.restore(call(*product.arrays, *vectors))
