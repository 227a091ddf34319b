"""Attention of single tokens: a block of threads, of one warpgroup, for each row and head of keys.

Softmax is computed on the way over the slots (FlashAttention, arXiv:2205.14135). It begins with the token itself, which
so need not come back from the cache that it is written to; what is copied from its slot, whether of before or after,
does not count. The rows of a matrix instruction are slots and then features, and its columns the queries that share
keys, 8 or fewer: all that a thread holds of them takes few registers, so that four blocks share a multiprocessor, and
one copies while another computes.
"""

import functools
import math

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from kernels.mosaic import attention
from kernels.mosaic import configs
from kernels.mosaic import tiles

_TILE, _COLUMNS = attention.TILE, 8
_OF_FEATURES = plgpu.Layout.WGMMA.reduce(1)
# Tiles of 16 KB, of keys or of values, that a multiprocessor has room for, and the most of them that help a block.
_ROOM, _MOST_STAGES = 13, 8
# Blocks of a multiprocessor: with three tiles each, as many bytes are on their way as with fewer blocks.
_MOST_BLOCKS = 4


def attend(qkv, keys, values, positions, angles, *, window: int | None):
  """The arguments and results of `kernels.decode_attention`; heads of 128 features, dtypes of 16 bits."""
  batch, kv_heads, slots, dim = keys.shape
  heads, dtype = qkv.shape[1] - 2 * kv_heads, qkv.dtype
  sharing, half, count = heads // kv_heads, dim // 2, slots // _TILE
  beside = min(_MOST_BLOCKS, pl.cdiv(batch * kv_heads, configs.CORES))
  stages = min(2 * count, _MOST_STAGES, _ROOM // beside)
  # Where blocks leave memory idle, it costs less to read a tile in vain than to wait for the position first.
  least = min(count, 2 if beside == 1 else 1)
  scale = math.log2(math.e) / math.sqrt(dim)  # exponents are of 2

  def kernel(qkv_gmem, positions_gmem, *refs):
    angle_gmems, (keys_gmem, values_gmem, out_gmem, *refs) = refs[: len(angles or ())], refs[len(angles or ()) :]
    tiles_smem, queries_smem, weights_smem, full = refs
    row, head = lax.axis_index('row'), lax.axis_index('head')
    position = positions_gmem[row]

    def copy(item: int, first=0):
      """Starts to copy an item: keys and values of a tile in turn, from tile `first` on."""
      tile, slot = first + item // 2, lax.rem(2 * first + item, stages)
      of_tile = pl.ds(tile * _TILE, _TILE)
      for begin in (0, half):
        part = pl.ds(begin, half)
        source = values_gmem.at[row, head, part, of_tile] if item % 2 else keys_gmem.at[row, head, of_tile, part]
        plgpu.copy_gmem_to_smem(source, tiles_smem.at[slot, part], full.at[slot])

    start = jnp.int32(0)
    for item in range(min(stages, 2 * least)):
      copy(item, start)

    # All of memory's latency at once, before anything waits for the position.
    load = lambda ref: tiles.load(ref, _OF_FEATURES, optimized=False)
    halves = lambda ref: [load(ref.at[pl.ds(begin, half)]) for begin in (0, half)]
    turns = [load(ref.at[row]) for ref in angle_gmems]
    queries = [halves(qkv_gmem.at[row, head * sharing + i]) for i in range(sharing)]
    new_key = halves(qkv_gmem.at[row, heads + head])
    new_value = load(qkv_gmem.at[row, heads + kv_heads + head])

    steps = lax.clamp(least, pl.cdiv(position, _TILE), count)
    for item in range(2 * least, stages):
      pl.when(item // 2 < steps)(functools.partial(copy, item, start))

    wide = lambda a: a.astype(jnp.float32)
    across = lambda features: lax.broadcast_in_dim(features, (*features.shape, _COLUMNS), [0])
    down = lambda queries, rows: lax.broadcast_in_dim(queries, (rows, _COLUMNS), [1])
    iota = lambda rows, axis: plgpu.broadcasted_iota(jnp.int32, (rows, _COLUMNS), axis, layout=plgpu.Layout.WGMMA)

    def turned(a):
      """In the dtype of operands, with two numbers of a column side by side, as rows of memory have them."""
      a = plgpu.layout_cast(a.astype(dtype), plgpu.Layout.WGMMA)  # inference does not find it
      return plgpu.layout_cast(a, plgpu.Layout.WGMMA_TRANSPOSED)

    def rotated(parts):
      """The halves of a query or a key."""
      if not turns:
        return parts
      (cos, sin), (first, second) = turns, map(wide, parts)
      return [(first * cos - second * sin).astype(dtype), (second * cos + first * sin).astype(dtype)]

    new_key = rotated(new_key)

    def write():
      """Writes the token into the cache."""
      last = lax.clamp(0, position, slots - 1)  # a row may be gone on with behind its end, in vain
      for begin, part in zip((0, half), new_key):
        keys_gmem[row, head, last, pl.ds(begin, half)] = part
      values_gmem[row, head, :, last] = new_value

    if beside == 1:
      write()  # a block by itself is as long as its latencies, and here one hides behind the copies

    columns = [wide(across(part)) for part in rotated(queries[0])]  # those that are left over repeat it
    for i in range(1, sharing):
      columns = [jnp.where(iota(half, 1) == i, wide(across(other)), part)
                 for part, other in zip(columns, rotated(queries[i]))]
    for begin, part in zip((0, half), columns):
      queries_smem.at[:, pl.ds(begin, half)].T[...] = turned(part)
    plgpu.commit_smem()

    most = scale * jnp.sum(sum(part * wide(across(key)) for part, key in zip(columns, new_key)), axis=0)
    zeros = plgpu.layout_cast(jnp.zeros((_TILE, _COLUMNS), jnp.float32), plgpu.Layout.WGMMA)
    total = zeros + 1 / _TILE  # every row adds up its own; the weight of the token, 1, is shared among them

    def step(index, carry):
      mixed, most, total = carry
      key_slot, value_slot = (lax.rem(2 * index + i, stages) for i in range(2))
      plgpu.barrier_wait(full.at[key_slot])
      scores = scale * multiplied(zeros, [
          (tiles_smem.at[key_slot, part], queries_smem.at[:, part].T) for part in (pl.ds(0, half), pl.ds(half, half))])
      before = position - index * _TILE - iota(_TILE, 0)
      seen = before > 0 if window is None else (before > 0) & (before < window)
      scores = jnp.where(seen, scores, -jnp.inf)
      above = lax.max(most, jnp.max(scores, axis=0))
      faded, weights = jnp.exp2(most - above), jnp.exp2(scores - down(above, _TILE))
      weights_smem.T[...] = turned(weights)
      plgpu.commit_smem()  # all threads have read the keys, too
      pl.when(index + stages // 2 < steps)(functools.partial(copy, stages, index))
      plgpu.barrier_wait(full.at[value_slot])
      mixed = multiplied(mixed * down(faded, dim), [(tiles_smem.at[value_slot], weights_smem.T)])

      @pl.when(index + (stages + 1) // 2 < steps)
      def _():
        plgpu.commit_smem()  # all threads have read what is replaced
        copy(stages + 1, index)

      return mixed, above, total * down(faded, _TILE) + weights

    mixed, _, total = lax.fori_loop(0, steps, step, (wide(across(new_value)), most, total))
    mixed *= down(1 / jnp.sum(total, axis=0), dim)
    for i in range(sharing):
      column = jnp.sum(jnp.where(iota(dim, 1) == i, mixed, 0.), axis=1)
      out_gmem[row, head * sharing + i] = column.astype(dtype)
    if beside > 1:
      write()  # into lines that the GPU's cache has by now, since the loop has read them

  scratch = (
      tiles.smem((stages, dim, _TILE), dtype), tiles.smem((_COLUMNS, dim), dtype, half),
      tiles.smem((_COLUMNS, _TILE), dtype), plgpu.Barrier(num_arrivals=2, num_barriers=stages))
  call = pl.kernel(
      lambda *refs: pl.run_scoped(functools.partial(kernel, *refs), *scratch),
      out_type=jax.ShapeDtypeStruct((batch, heads, dim), dtype),
      mesh=plgpu.Mesh(grid=(batch, kv_heads), grid_names=('row', 'head')), compiler_params=tiles.PARAMS,
      name='decode_attention')

  def run(refs):
    mixed, *cache = refs  # a kernel writes in place to references that it is called with
    mixed[...] = call(qkv, positions, *(angles or ()), *cache)

  return pl.run_state(run)((jnp.zeros((batch, heads, dim), dtype), keys, values))


def multiplied(total, pairs):
  """float32 `total`, in the layout of an accumulator, and the products of pairs of references to shared memory."""
  def run(accumulator):
    for pair in pairs:
      plgpu.wgmma(accumulator, *pair)

  return pl.run_state(run)(plgpu.ACC.init(total))
