"""Attention of single tokens: a block of threads, of one warpgroup, for each row and head of keys.

Softmax is computed on the way over the slots (FlashAttention, arXiv:2205.14135). It begins with the token itself, which
so need not come back from the cache that it is written to; what is copied from its slot, whether of before or after,
does not count. The matrix instruction takes 64 rows of queries, of which there are as many as heads share keys; the
tensor cores have time for the others, and no row has a part in another.
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

_TILE, _ROWS = attention.TILE, 64
_OF_ROWS = plgpu.Layout.WGMMA.reduce(1)
_OF_FEATURES = plgpu.Layout.WGMMA.reduce(0)


def attend(qkv, keys, values, positions, angles, *, window: int | None):
  """The arguments and results of `kernels.decode_attention`; heads of 128 features, dtypes of 16 bits."""
  batch, kv_heads, slots, dim = keys.shape
  heads, dtype = qkv.shape[1] - 2 * kv_heads, qkv.dtype
  sharing, half = heads // kv_heads, dim // 2
  # Copies in flight: with two, two blocks share a multiprocessor; where there are not so many, one has its memory.
  stages = min(slots // _TILE, 2 if batch * kv_heads > configs.CORES else 4)
  scale = math.log2(math.e) / math.sqrt(dim)  # exponents are of 2

  def kernel(qkv_gmem, positions_gmem, *refs):
    angle_gmems, (keys_gmem, values_gmem, out_gmem, *refs) = refs[: len(angles or ())], refs[len(angles or ()) :]
    keys_smem, values_smem, key_smem, out_smem, full = refs
    row, head = lax.axis_index('row'), lax.axis_index('head')

    def copy(step):
      slot, window_of_slots = lax.rem(step, stages), pl.ds(step * _TILE, _TILE)
      plgpu.copy_gmem_to_smem(keys_gmem.at[row, head, window_of_slots], keys_smem.at[slot], full.at[slot])
      plgpu.copy_gmem_to_smem(values_gmem.at[row, head, :, window_of_slots], values_smem.at[slot], full.at[slot])

    copy(jnp.int32(0))  # before its position is known, a token has one before it
    position = positions_gmem[row]
    steps = lax.clamp(1, pl.cdiv(position, _TILE), slots // _TILE)
    for step in range(1, stages):
      pl.when(step < steps)(functools.partial(copy, jnp.int32(step)))

    load = lambda ref, layout=_OF_FEATURES: tiles.load(ref, layout, optimized=False)
    wide = lambda a: a.astype(jnp.float32)
    along = lambda vector: lax.broadcast_in_dim(vector, (_ROWS, *vector.shape), [1])
    of_rows = lambda vector, like: lax.broadcast_in_dim(vector, like.shape, [0])
    turns = [load(ref.at[row]) for ref in angle_gmems]

    def rotated(index):
      """The halves of a query or a key."""
      first, second = (load(qkv_gmem.at[row, index, pl.ds(begin, half)]) for begin in (0, half))
      if not turns:
        return first, second
      (cos, sin), first, second = turns, wide(first), wide(second)
      return (first * cos - second * sin).astype(dtype), (second * cos + first * sin).astype(dtype)

    queries = [along(part) for part in rotated(head * sharing)]
    if sharing > 1:
      of_head = plgpu.broadcasted_iota(jnp.int32, (_ROWS, half), 0, layout=plgpu.Layout.WGMMA)
      for i in range(1, sharing):
        others = [along(part) for part in rotated(head * sharing + i)]
        queries = [jnp.where(of_head == i, wide(other), wide(part)).astype(dtype)
                   for part, other in zip(queries, others)]

    new_key, new_value = rotated(heads + head), qkv_gmem.at[row, heads + kv_heads + head]
    most = sum(jnp.sum(wide(query) * wide(along(part)), axis=1) for query, part in zip(queries, new_key)) * scale
    total = plgpu.layout_cast(jnp.full((_ROWS,), 1, jnp.float32), _OF_ROWS)
    mixed = along(wide(load(new_value)))
    nothing = plgpu.layout_cast(jnp.zeros((_ROWS, _TILE), jnp.float32), plgpu.Layout.WGMMA)

    last = lax.min(position, slots - 1)  # a row may be gone on with behind its end, in vain
    for begin, part in zip((0, half), new_key):
      key_smem[pl.ds(begin, half)] = part
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(key_smem, keys_gmem.at[row, head, last])
    values_gmem[row, head, :, last] = load(new_value, plgpu.Layout.WG_STRIDED((dim,), vec_size=1))

    def step(index, carry):
      mixed, most, total = carry
      slot = lax.rem(index, stages)
      plgpu.barrier_wait(full.at[slot])
      scores = scale * multiplied(nothing, [
          (part, keys_smem.at[slot, :, pl.ds(begin, half)].T) for begin, part in zip((0, half), queries)])
      before = position - index * _TILE - plgpu.broadcasted_iota(
          jnp.int32, (_ROWS, _TILE), 1, layout=plgpu.Layout.WGMMA)
      seen = before > 0 if window is None else (before > 0) & (before < window)
      scores = jnp.where(seen, scores, -jnp.inf)
      above = lax.max(most, jnp.max(scores, axis=1))
      faded, weights = jnp.exp2(most - above), jnp.exp2(scores - of_rows(above, scores))
      mixed = multiplied(mixed * of_rows(faded, mixed), [(weights.astype(dtype), values_smem.at[slot].T)])

      @pl.when(index + stages < steps)
      def _():
        plgpu.commit_smem()  # all threads have read what is replaced
        copy(index + stages)

      return mixed, above, total * faded + jnp.sum(weights, axis=1)

    mixed, _, total = lax.fori_loop(0, steps, step, (mixed, most, total))
    out_smem[...] = (mixed / of_rows(total, mixed)).astype(dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(
        out_smem.at[pl.ds(0, sharing)], out_gmem.at[row, pl.ds(head * sharing, sharing)])
    plgpu.wait_smem_to_gmem(0)

  scratch = (
      tiles.smem((stages, _TILE, dim), dtype, half), tiles.smem((stages, dim, _TILE), dtype),
      plgpu.SMEM((dim,), dtype), plgpu.SMEM((_ROWS, dim), dtype), plgpu.Barrier(num_arrivals=2, num_barriers=stages))
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
  """float32 `total`, in the layout of an accumulator, and the products of arrays with references to shared memory."""
  def run(accumulator):
    for array, ref in pairs:
      plgpu.wgmma(accumulator, array, ref)

  return pl.run_state(run)(plgpu.ACC.init(total))
