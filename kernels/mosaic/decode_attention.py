"""Attention of single tokens: for each row and head of keys a block of threads, of one warpgroup, or a cluster of them.

Softmax is computed on the way over the slots (FlashAttention, arXiv:2205.14135). It begins with the token itself, which
so need not come back from the cache that it is written to; what is copied from its slot, whether of before or after,
does not count. The rows of a matrix instruction are slots and then features, of values that it reads transposed; its
columns are the queries that share keys, 8 or fewer: all that a thread holds of them takes few registers, so that four
blocks share a multiprocessor, and one copies while another computes. Where rows and heads are few and slots many, the
tiles are dealt out to a cluster, whose first block puts the parts together, and alone knows of the token.

Of a cache of 8 bits, codes become operands in registers, which takes as long as their copies. So a block that is alone
on a multiprocessor has two warpgroups, to which many tiles are dealt out likewise. The scales of slots multiply scores
and weights, and the token attends to itself as the cache will have it.
"""

import dataclasses
import functools
import math

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from kernels import behind as behind_lib
from kernels import static_ranges
from kernels.mosaic import attention
from kernels.mosaic import attention_operands
from kernels.mosaic import attention_parts
from kernels.mosaic import cache_codes
from kernels.mosaic import cache_numbers
from kernels.mosaic import clusters
from kernels.mosaic import column_numbers
from kernels.mosaic import configs
from kernels.mosaic import tiles
from kernels.mosaic import token_codes

_COLUMNS = column_numbers.COLUMNS
# Reductions of a warpgroup: the token's range, its score, the largest score of a step, the sum of weights. Each has
# memory that no other overwrites.
_REDUCTIONS = 4
# Slots of 16-bit numbers that a multiprocessor has room for, of keys or of values, the most of them that help a block,
# and how many lie in the place of a part of the sums.
_ROOM, _MOST_AHEAD, _OF_PART = 13 * attention.TILE, 8 * attention.TILE, 48
# Slots of a block from which on they are divided among two, and the most blocks that there may be then: 128 in clusters
# of 8 took 14.6 us where 64 in clusters of 4 took 8.9 (two rows of 2048 slots, 8 heads of keys).
_LONG, _MOST_BLOCKS_SHARING = 1024, configs.CORES // 2
# Slots of a block's codes from which on two warpgroups share them: of 2048 slots, 32 heads, 9.5 us instead of 11.1; of
# 128, 2.9 instead of 2.7. Numbers of 16 bits gain nothing.
_LONG_OF_CODES = 512
# Blocks of a multiprocessor: with three tiles of numbers each, as many bytes are on their way as with fewer blocks.
_MOST_BLOCKS = 4


def attend(qkv, cache, positions, angles, *, window: int | None, behind=behind_lib.Behind()):
  """The arguments and results of `kernels.decode_attention`; heads of 128 features, dtypes of 16 bits."""
  batch, kv_heads, slots, dim = cache.keys.shape
  held = [array for array in cache if array is not None]
  form, per_number = cache_codes if cache.quantized else cache_numbers, cache.keys.dtype.itemsize
  heads, dtype = qkv.shape[1] - 2 * kv_heads, qkv.dtype
  ends = static_ranges.ends(behind.static)
  sharing, half = heads // kv_heads, dim // 2
  blocks, split = batch * kv_heads, 1
  while split < 8 and 2 * split * blocks <= _MOST_BLOCKS_SHARING and slots >= split * _LONG:
    split *= 2
  beside = min(_MOST_BLOCKS, pl.cdiv(blocks, configs.CORES))
  groups = 2 if cache.quantized and beside == 1 and slots >= split * _LONG_OF_CODES else 1
  lanes = split * groups
  # A block by itself is as long as its latencies, of which longer steps are fewer.
  tile = attention.TILE * (2 if beside == 1 and slots % (2 * attention.TILE) == 0 else 1)
  # Two warpgroups also have parts of sums beside the tiles.
  room = 2 * min(groups * _MOST_AHEAD, _ROOM // beside - (groups - 1) * split * _OF_PART) // per_number
  count, stages = slots // tile, min(2 * slots, room) // tile // groups
  # Where blocks leave memory idle, it costs less to read a tile in vain than to wait for the position first.
  least = min(count, 2 * attention.TILE // tile) if beside == 1 else 1
  result = jax.ShapeDtypeStruct((batch, heads, dim), dtype if behind.static is None else jnp.int8)
  scale = math.log2(math.e) / math.sqrt(dim)  # exponents are of 2

  def kernel(qkv_gmem, positions_gmem, *refs):
    angle_gmems, refs = refs[: len(angles or ())], refs[len(angles or ()) :]
    end_refs, refs = refs[: len(ends)], refs[len(ends) :]
    held_gmems, (out_gmem, *refs) = refs[: len(held)], refs[len(held) :]
    tiles_smem, queries_smem, weights_smem, full, scales_smem, numbers_smem, codes_smem, others, mail = refs
    other_smem, other_stored = others
    row, head, block = lax.axis_index('row'), lax.axis_index('head'), lax.axis_index('part') if split > 1 else 0
    group = lax.axis_index('group') if groups > 1 else 0
    rank, position = block * groups + group, positions_gmem[row]
    if groups > 1:
      queries_smem, weights_smem = queries_smem.at[group], weights_smem.at[group]
    if split > 1:
      clusters.expect(mail)
    memory = lambda index: numbers_smem.at[group * _REDUCTIONS + index]
    place = lambda item: group * stages + lax.rem(item, stages)

    def copy(item: int, first=0):
      """Starts to copy an item: keys and values of this warpgroup's tiles in turn, from its tile `first` on."""
      step, slot = first + item // 2, place(2 * first + item)
      of_tile = pl.ds((rank + lanes * step) * tile, tile)
      # Keys and their scales, or values and theirs, as `Cache` has them in turn.
      for gmem, smem in zip(held_gmems[item % 2 :: 2], (tiles_smem, scales_smem)):
        plgpu.copy_gmem_to_smem(gmem.at[row, head, of_tile], smem.at[slot], full.at[slot])

    start = jnp.int32(0)
    for item in range(min(stages, 2 * least)):
      copy(item, start)

    # All of memory's latency at once, before anything waits for the position.
    halves = lambda ref: [form.load(ref.at[pl.ds(begin, half)]) for begin in (0, half)]
    turns = [form.load(ref.at[row]) for ref in angle_gmems]
    queries = [halves(qkv_gmem.at[row, head * sharing + i]) for i in range(sharing)]
    new_key = halves(qkv_gmem.at[row, heads + head])
    new_value = [form.load(qkv_gmem.at[row, heads + kv_heads + head])]

    steps = lax.min(pl.cdiv(position, tile), count)
    steps = lax.max(least, lax.div(steps - rank + lanes - 1, lanes))
    for item in range(2 * least, stages):
      pl.when(item // 2 < steps)(functools.partial(copy, item, start))

    wide = lambda a: a.astype(jnp.float32)
    across = lambda features: lax.broadcast_in_dim(features, (*features.shape, _COLUMNS), [0])
    down = lambda queries, rows: lax.broadcast_in_dim(queries, (rows, _COLUMNS), [1])
    iota = lambda rows, axis: plgpu.broadcasted_iota(jnp.int32, (rows, _COLUMNS), axis, layout=plgpu.Layout.WGMMA)

    turned = functools.partial(attention_operands.turned, dtype=dtype)
    rotated = functools.partial(attention_operands.rotated, angles=turns)
    written = form.token(rotated(new_key), new_value, dtype, memory(0))
    new_key, (new_value,) = (parts for parts, *_ in written)

    def write():
      """Writes the token into the cache."""
      last = lax.clamp(0, position, slots - 1)  # a row may be gone on with behind its end, in vain
      for i, (_, parts, token_scale) in enumerate(written):
        for j, part in enumerate(parts):
          form.store(part, held_gmems[i].at[row, head, last, pl.ds(j * len(part), len(part))])
        if token_scale is not None:
          held_gmems[2 + i][row, head, last] = token_scale

    if beside == 1:
      pl.when(rank == 0)(write)  # a block by itself is as long as its latencies, and here one hides behind the copies

    columns = [wide(across(part)) for part in rotated(queries[0])]  # those that are left over repeat it
    for i in range(1, sharing):
      columns = [jnp.where(iota(half, 1) == i, wide(across(other)), part)
                 for part, other in zip(columns, rotated(queries[i]))]
    for begin, part in zip((0, half), columns):
      queries_smem.at[:, pl.ds(begin, half)].T[...] = turned(part)
    plgpu.commit_smem()

    products = sum(part * wide(across(key)) for part, key in zip(columns, new_key))
    most = scale * column_numbers.over_rows(products, 'sum', memory(1))
    zeros = plgpu.layout_cast(jnp.zeros((tile, _COLUMNS), jnp.float32), plgpu.Layout.WGMMA)
    # Every row adds up its own; the weight of the token, 1, is shared among them.
    own = lax.convert_element_type(rank == 0, jnp.float32) if lanes > 1 else 1.
    mixed, total = own * wide(across(new_value)), zeros + own / tile

    of_slots = lambda slot: form.factor(scales_smem.at[slot], zeros.shape)

    def step(index, carry):
      mixed, most, total = carry
      key_slot, value_slot = (place(2 * index + i) for i in range(2))
      plgpu.barrier_wait(full.at[key_slot])
      scores = form.by_keys(zeros, tiles_smem.at[key_slot], queries_smem) * (scale * of_slots(key_slot))
      before = position - (rank + lanes * index) * tile - iota(tile, 0)
      seen = before > 0 if window is None else (before > 0) & (before < window)
      scores = jnp.where(seen, scores, -jnp.inf)
      above = lax.max(most, column_numbers.over_rows(scores, 'max', memory(2)))
      faded, weights = jnp.exp2(most - above), jnp.exp2(scores - down(above, tile))
      arrived = lambda: plgpu.barrier_wait(full.at[value_slot])
      if cache.quantized:
        arrived()  # with the scales that the weights want
      weights_smem.T[...] = turned(weights * of_slots(value_slot))
      plgpu.commit_smem()  # all threads have read the keys, too
      pl.when(index + stages // 2 < steps)(functools.partial(copy, stages, index))
      if not cache.quantized:
        arrived()
      mixed = form.by_values(mixed * down(faded, dim), tiles_smem.at[value_slot], weights_smem)

      @pl.when(index + (stages + 1) // 2 < steps)
      def _():
        plgpu.commit_smem()  # all threads have read what is replaced
        copy(stages + 1, index)

      return mixed, above, total * down(faded, tile) + weights

    known = [ref[0] for ref in end_refs]
    mixed, most, total = lax.fori_loop(0, steps, step, (mixed, most, total))
    sums = mixed, down(most, dim), down(column_numbers.over_rows(total, 'sum', memory(3)), dim)

    def finish():
      """Puts the parts together, and stores."""
      whole = sums
      if groups > 1:
        plgpu.barrier_wait(other_stored)
        whole = attention_parts.joined(sums, attention_parts.load(other_smem))
      if split > 1:
        clusters.meet()
        pl.when(block > 0)(lambda: attention_parts.send(whole, mail, block - 1, 0))

      @pl.when(block == 0)
      def _():
        found = whole
        if split > 1:
          found = functools.reduce(attention_parts.joined, attention_parts.received(mail, whole), whole)
        mixed, _, total = found
        mixed /= total
        for i in range(sharing):
          column = jnp.sum(jnp.where(iota(dim, 1) == i, mixed, 0.), axis=1)
          finished = token_codes.coded(column.astype(dtype), behind, known)
          attention_operands.store(finished, out_gmem.at[row, head * sharing + i], form.store, codes_smem)

    if groups > 1:
      @pl.when(group > 0)
      def _():
        attention_parts.store(sums, other_smem)
        plgpu.barrier_arrive(other_stored)

    pl.when(group == 0)(finish)
    if beside > 1:
      write()  # into lines that the GPU's cache has by now, since the loop has read them

  scratch = [
      tiles.smem((groups * stages, tile, dim), cache.keys.dtype, 128 // per_number),
      *(tiles.smem((groups, *shape) if groups > 1 else shape, dtype, part)
        for shape, part in (((_COLUMNS, dim), half), ((_COLUMNS, tile), attention.TILE))),
      plgpu.Barrier(num_arrivals=len(held) // 2, num_barriers=groups * stages),
      plgpu.SMEM((groups * stages if cache.quantized else 1, tile), jnp.float32),
      column_numbers.memory(groups * _REDUCTIONS),
      None if behind.static is None else plgpu.SMEM((dim,), jnp.int8),
      [attention_parts.memory(dim, _COLUMNS), plgpu.Barrier()] if groups > 1 else [None, None],
      attention_parts.mailbox(split - 1, dim, _COLUMNS) if split > 1 else None]
  call = pl.kernel(
      lambda *refs: pl.run_scoped(
          functools.partial(kernel, *refs), *scratch, **dict(collective_axes='group') if groups > 1 else {}),
      out_type=result,
      mesh=plgpu.Mesh(
          grid=(batch, kv_heads), grid_names=('row', 'head'),
          **dict(num_threads=groups, thread_name='group') if groups > 1 else {},
          **dict(cluster=(split,), cluster_names=('part',)) if split > 1 else {}),
      # Reductions of Mosaic within a warp need none; with the 2 kB that it keeps, three blocks of codes fit, not four.
      compiler_params=dataclasses.replace(tiles.PARAMS, reduction_scratch_bytes=0),
      name='decode_attention')

  def run(refs):
    mixed, *given = refs  # a kernel writes in place to references that it is called with
    mixed[...] = call(qkv, positions, *(angles or ()), *ends, *given)

  mixed, *held = pl.run_state(run)((jnp.zeros(result.shape, result.dtype), *held))
  return mixed, type(cache)(*held)
