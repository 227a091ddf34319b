"""The product for few tokens: bound by the bytes of the weights, which are read once.

Computes y^T = W x^T for 64 outputs a block of threads, or 128, or 32. The inputs are dealt out in steps to the
warpgroups of a block and, where the blocks are too few to keep the memory busy, to the `split` blocks of a cluster, or
to `fold` runs in the rows of the block. Each warpgroup sums its own steps from its own stages, which one more copies
for all, or each for itself. The first warpgroup of a block adds up the block's sums. Blocks of a cluster then have a
share of its tokens each, of which the others send them theirs. Either is exact in any order for integers. Results are
stored from registers, codes by way of shared memory.
"""

import functools

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from kernels import behind as behind_lib
from kernels import static_ranges
from kernels.mosaic import cluster_sums
from kernels.mosaic import clusters
from kernels.mosaic import configs
from kernels.mosaic import epilogue
from kernels.mosaic import partial_sums
from kernels.mosaic import products
from kernels.mosaic import results
from kernels.mosaic import steps as steps_lib
from kernels.mosaic import sums as sums_lib
from kernels.mosaic import threads
from kernels.mosaic import tiles


def matmul(
    x, w, terms: epilogue.Terms, groups, *, tokens: int, layout, out_dtype, config: configs.Decode, unpacking=None,
    behind: behind_lib.Behind = behind_lib.Behind(),
):  # pyformat: disable
  """The scaled product.

  Args:
    x: int8 [rows, K], float8_e4m3fn with groups, or bfloat16 for `INT4_WIDE`; rows below 8 or a multiple of 8, K with
      groups a multiple of `tile_k` times `fold`.
    w: int8 [N, K] (`ROWS`) or [N, K / 2] (`INT4`, `DINT4`, `INT4_WIDE`), N a multiple of `tile_n`.
    terms: the epilogue's vectors.
    groups: `factors.Groups`, or None for one scale an output.
    tokens: M, the rows of `x` that count.
    layout: of `w`.
    out_dtype: bfloat16, float16 or float32.
    config: the tiling.
    unpacking: `factors.Unpacking` of codes whose integers depend on their output or group, or None.
    behind: what becomes of the result, with the ends of a range as scalars.

  Returns:
    [M, N] of `out_dtype`, or as `behind.apply` has it.
  """
  outputs = len(w)
  product = products.Product(
      x, w, groups, layout, config.tile_k, unpacking, config.fold, config.of_warps(layout))
  warpgroups, stages, fold = config.warpgroups, config.stages, config.fold
  steps, lanes = product.steps, warpgroups * config.split
  chunk = epilogue.Chunk(config.outputs, config.tile_m // config.shares, 1, True)
  shape = config.tile_n, config.tile_m
  vectors, of_tokens = terms.vectors(), terms.of_tokens()
  ends, out_type = static_ranges.ends(behind.static), out_dtype if behind.static is None else jnp.int8

  first = min(stages, pl.cdiv(steps, lanes))  # turns for which there is room at once
  more = steps > first * lanes

  def barrier(arrivals, count: int = 1):
    """Barriers, or None without arrivals: each that is made delays the first copy."""
    return plgpu.Barrier(num_arrivals=int(arrivals), num_barriers=count) if arrivals else None

  def kernel(*refs, smems, tokens_smem, sums_smem, full, free, summed, scales, mail):
    gmems, refs = refs[: len(product.arrays)], refs[len(product.arrays) :]
    vector_refs, refs = refs[: len(vectors)], refs[len(vectors) :]
    end_refs, (out_gmem,) = refs[: len(ends)], refs[len(ends) :]
    group, block = lax.axis_index('group'), lax.axis_index('split') if config.split > 1 else 0
    n, m = lax.axis_index('outputs') * config.outputs, lax.axis_index('tokens') * config.tile_m
    if config.split > 1:
      clusters.expect(mail)

    def turns(lane):
      """Steps of a warpgroup: every `lanes`-th one."""
      return lax.div(steps - lane + lanes - 1, lanes)

    def slot(turn, i):
      """Where a turn of warpgroup `i` has its operands."""
      return lax.rem(turn, stages) * warpgroups + i

    def start(turn, i):
      """Starts the copies of a turn of warpgroup `i`."""
      found = slot(turn, i)
      product.copy(gmems, smems, found, full.at[found], turn * lanes + block * warpgroups + i, n, m)

    def start_first(groups):
      """Starts the copies of the first turns of warpgroups."""
      # A compiler that knows how many makes the addresses of all in front of the first copy.
      @pl.loop(0, threads.unknown(first, lax.axis_index('outputs')))
      def _(turn):
        for i in groups:
          if steps >= first * lanes:
            start(turn, i)
          else:
            pl.when(turn < turns(block * warpgroups + i))(functools.partial(start, turn, i))

    def start_tokens():
      # Read by a copy, for which the vectors need not cover a whole tile.
      for i, index in enumerate(of_tokens):
        plgpu.copy_gmem_to_smem(vector_refs[index].at[pl.ds(m, tokens_smem.shape[1])], tokens_smem.at[i], scales)

    def copy():
      if not config.shared:
        plgpu.set_max_registers(tiles.COPYING, action='decrease')
      start_tokens()
      start_first(range(warpgroups))
      if not more:
        return

      @pl.loop(first, pl.cdiv(steps, lanes))
      def _(turn):
        for i in range(warpgroups):
          @pl.when(turn < turns(block * warpgroups + i))
          def _():
            plgpu.barrier_wait(free.at[slot(turn, i)])
            start(turn, i)

      # The last arrivals are waited for too, so that no barrier is left between two phases.
      for i in range(warpgroups):
        count = turns(block * warpgroups + i)

        @pl.loop(lax.max(0, count - stages), count)
        def _(turn):
          plgpu.barrier_wait(free.at[slot(turn, i)])

    def compute():
      if not config.shared:
        plgpu.set_max_registers(tiles.registers(warpgroups), action='increase')
      lane = block * warpgroups + group
      if not config.copying:
        pl.when(group == 0)(start_tokens)
        start_first([group])
      if of_tokens:
        plgpu.barrier_wait(scales)
      found = {index: tokens_smem.at[i] for i, index in enumerate(of_tokens)}
      mine = lax.rem(block, config.shares) * chunk.tokens if config.shares > 1 else 0
      loaded = epilogue.load(terms, [found.get(i, ref) for i, ref in enumerate(vector_refs)], chunk, n, mine,
                             partial_sums.layout(fold))
      held = product.held(gmems, n, config.tile_n)
      known = [ref[0] for ref in end_refs]
      if config.split > 1:
        pl.when(group == 0)(clusters.meet)

      def arrive(turn):
        plgpu.barrier_wait(full.at[found := slot(turn, group)])
        return found

      def leave(turn):
        if not more:
          return
        if config.copying:
          plgpu.barrier_arrive(free.at[slot(turn, group)])
          return

        @pl.when(turn + stages < turns(lane))
        def _():
          plgpu.commit_smem()  # all threads have read what is replaced
          start(turn + stages, group)

      tile = sums_lib.Tile(product, smems, pl.ds(0, config.tile_n), shape, held)
      sums = sums_lib.over(steps_lib.Steps(turns(lane), arrive, leave), tile)
      if config.partial_sums:
        kept = warpgroups - config.partial_sums  # of one run, the first warpgroup's stay in its registers

        @pl.when(group >= kept)
        def _():
          partial_sums.publish(sums, sums_smem.at[group - kept])
          plgpu.barrier_arrive(summed)

      @pl.when(group == 0)
      def _():
        total = sums
        if config.partial_sums:
          plgpu.barrier_wait(summed)
          total = partial_sums.add_up(sums, sums_smem, fold, config.partial_sums)

        def finish(sums):
          scaled = epilogue.apply(sums, loaded, chunk, 0)
          result = results.finished(scaled, behind, known, fold, out_dtype)
          results.store(result, out_gmem, sums_smem, fold, bool(behind.gate), behind.outputs(n), m + mine)

        if config.split == 1:
          finish(total)
          return
        share = cluster_sums.exchange(total, mail, block, config.shares)
        pl.when(block < config.shares)(lambda: finish(share()))

    if config.copying:
      lax.cond(group == warpgroups, copy, compute)
    else:
      compute()

  call = plgpu.kernel(
      kernel,
      out_type=jax.ShapeDtypeStruct((tokens, behind.outputs(outputs)), out_type),
      scratch_types=dict(
          smems=product.buffers(stages * warpgroups, *shape),
          tokens_smem=plgpu.SMEM((max(1, len(of_tokens)), configs.whole_row(config.tile_m)), jnp.float32),
          sums_smem=partial_sums.buffer(config.partial_sums, config.tile_n * config.tile_m, product.dtype),
          full=plgpu.Barrier(num_arrivals=product.copies, num_barriers=stages * warpgroups),
          free=barrier(config.copying and more, stages * warpgroups),
          summed=barrier(config.partial_sums),
          scales=barrier(len(of_tokens)),
          mail=cluster_sums.mailbox(config.split, config.shares, shape, product.dtype) if config.split > 1 else None),
      grid=(outputs // config.outputs, pl.cdiv(tokens, config.tile_m)), grid_names=('outputs', 'tokens'),
      num_threads=warpgroups + config.copying, thread_name='group', compiler_params=tiles.PARAMS,
      kernel_name=f'decode_{outputs}x{x.shape[1]}',
      # Blocks find their places in clusters by divisions.
      **dict(cluster=(config.split,), cluster_names=('split',)) if config.split > 1 else {})
  return call(*product.arrays, *vectors, *ends)
