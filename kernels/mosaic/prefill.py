"""The product of 8-bit codes for many tokens: persistent, warp-specialized, bound by the tensor cores.

Computes y^T = W x^T, so that the weights are the operand that a warpgroup holds in registers, where 4-bit codes are
unpacked, and the activations the one in shared memory. One warpgroup copies tiles for all others, ahead by `stages`
steps across the borders of output tiles; each of the others owns `tile_n` outputs of all `tile_m` tokens of a tile.
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


def matmul(x, w, terms: epilogue.Terms, *, layout, out_dtype, config: configs.Prefill):
  """The scaled product.

  Args:
    x: int8 [M, K], M a multiple of 8 and at least `config.tile_m`, K a multiple of `config.tile_k`.
    w: int8 [N, K] (`ROWS`) or [N, K / 2] (`INT4`), N a multiple of `config.outputs`.
    terms: the epilogue's vectors, those of tokens as long as whole tiles.
    layout: of `w`.
    out_dtype: bfloat16, float16 or float32.
    config: the tiling.

  Returns:
    [M, N] of `out_dtype`, with rows to spare where its numbers have 32 bits.
  """
  (tokens, inputs), outputs = x.shape, w.shape[0]
  per_byte = 2 if layout is prepack.Layout.INT4 else 1
  steps = inputs // config.tile_k
  grid = outputs // config.outputs, pl.cdiv(tokens, config.tile_m)
  cores = min(configs.CORES, grid[0] * grid[1])
  chunk = epilogue.Chunk.of(out_dtype, config.tile_n, config.tile_m)

  def kernel(x_gmem, w_gmem, *rest):
    vectors, (out_gmem, x_smem, w_smem, out_smem, full, free) = rest[:-6], rest[-6:]
    group = lax.axis_index('group')

    def each_tile(body):
      """Runs `body(first output, first token, steps before)` for every tile of this block."""
      @plgpu.nd_loop((grid[0] * grid[1],), collective_axes='core')
      def _(loop):
        n, m = plgpu.planar_snake(loop.index[0], grid, 0, config.panel)
        body(n * config.outputs, m * config.tile_m, loop.local_index * steps)

    def copy():
      plgpu.set_max_registers(40, action='decrease')

      def copy_tile(n, m, before):
        @pl.loop(0, steps)
        def _(k):
          step = before + k
          slot = lax.rem(step, config.stages)

          @pl.when(step >= config.stages)
          def _():
            plgpu.barrier_wait(free.at[slot])

          for gmem, smem, row, width in (
              (w_gmem, w_smem, n, config.tile_k // per_byte), (x_gmem, x_smem, m, config.tile_k)):
            block = gmem.at[pl.ds(row, smem.shape[1]), pl.ds(k * width, width)]
            plgpu.copy_gmem_to_smem(block, smem.at[slot], full.at[slot])

      each_tile(copy_tile)
      # The last arrivals are waited for too, so that no barrier is left between two phases.
      total = lax.div(grid[0] * grid[1] - lax.axis_index('core') + cores - 1, cores) * steps

      @pl.loop(lax.max(0, total - config.stages), total)
      def _(step):
        plgpu.barrier_wait(free.at[lax.rem(step, config.stages)])

    def compute():
      plgpu.set_max_registers(tiles.registers(config.warpgroups), action='increase')

      def compute_tile(n, m, before):
        def accumulate(accumulator):
          @pl.loop(0, steps)
          def _(k):
            slot = lax.rem(before + k, config.stages)
            plgpu.barrier_wait(full.at[slot])
            weights = w_smem.at[slot, pl.ds(group * config.tile_n, config.tile_n)]
            weights = registers.int4_times_16(weights[...]) if per_byte == 2 else weights
            plgpu.wgmma(accumulator, weights, x_smem.at[slot].T)
            plgpu.wgmma_wait(0)
            plgpu.barrier_arrive(free.at[slot])

          return accumulator[...]

        sums = pl.run_scoped(accumulate, plgpu.ACC((config.tile_n, config.tile_m), jnp.int32))
        first = n + group * config.tile_n
        loaded = epilogue.load(terms, vectors, chunk, first, m)
        epilogue.store(sums, loaded, out_gmem, out_smem.at[group], chunk, first, m)

      each_tile(compute_tile)
      plgpu.wait_smem_to_gmem(0, wait_read_only=True)

    lax.cond(group == config.warpgroups, copy, compute)

  call = plgpu.kernel(
      kernel,
      out_type=jax.ShapeDtypeStruct(chunk.shape(tokens, outputs, config.tile_m), out_dtype),
      scratch_types=(
          tiles.smem((config.stages, config.tile_m, config.tile_k), jnp.int8),
          tiles.smem((config.stages, config.outputs, config.tile_k // per_byte), jnp.int8),
          tiles.smem((config.warpgroups, *chunk.buffer), out_dtype),
          plgpu.Barrier(num_arrivals=2, num_barriers=config.stages),
          plgpu.Barrier(num_arrivals=config.warpgroups, num_barriers=config.stages)),
      grid=(cores,), grid_names=('core',), num_threads=config.warpgroups + 1, thread_name='group',
      compiler_params=tiles.PARAMS)
  return chunk.restore(call(x, w, *terms.vectors()))
