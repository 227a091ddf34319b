"""What happens to integer sums before they are stored: scales, terms of offsets, bias, dtype, and the transpose."""

import dataclasses
import math
from typing import Any, NamedTuple

from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from kernels.mosaic import configs
from kernels.mosaic import tiles


class Terms(NamedTuple):
  """y[m, n] = sums[m, n] * token_scale[m] * output_scale[n] * factor + sum over products of n[n] * m[m], + bias[n].

  Attributes:
    output_scale: float32 [N], or None where the sums are scaled already.
    token_scale: float32 [M], or [1] for all tokens, or None for one.
    products: pairs of float32 [N] and float32 [M] or [1].
    bias: float32 [N] or None.
    factor: a Python number.
  """

  output_scale: Any
  token_scale: Any
  products: tuple[tuple[Any, Any], ...] = ()
  bias: Any = None
  factor: float = 1.0

  def vectors(self) -> list[Any]:
    """The arrays, in the order of `placed`."""
    flat = [self.output_scale, self.token_scale, *(v for pair in self.products for v in pair), self.bias]
    return [vector for vector in flat if vector is not None]

  def placed(self, vectors) -> 'Terms':
    """The same terms made of other objects, given in the order of `vectors`."""
    rest = iter(vectors)
    take = lambda present: next(rest) if present is not None else None
    return Terms(take(self.output_scale), take(self.token_scale),
                 tuple((next(rest), next(rest)) for _ in self.products), take(self.bias), self.factor)

  def of_tokens(self) -> list[int]:
    """Which of `vectors` have an entry for each token."""
    tokens = [v for v in (self.token_scale, *(row for _, row in self.products)) if v is not None and v.shape != (1,)]
    return [i for i, vector in enumerate(self.vectors()) if any(vector is other for other in tokens)]


@dataclasses.dataclass(frozen=True)
class Chunk:
  """The part of a warpgroup's tile that goes through shared memory at once.

  Numbers of 16 bits are transposed on the way there, so that a row of memory is a token; others cannot be, and their
  result is transposed afterwards.
  """

  tile_n: int
  tokens: int
  count: int
  transposed: bool

  @classmethod
  def of(cls, dtype, tile_n: int, tile_m: int) -> 'Chunk':
    """The chunk for tiles of `tile_n` outputs and `tile_m` tokens."""
    transposed = jnp.dtype(dtype).itemsize == 2
    tokens = math.gcd(tile_m, 64 if transposed else 32)
    return cls(tile_n, tokens, tile_m // tokens, transposed)

  @property
  def slots(self) -> int:
    """Chunks on their way to memory at the same time."""
    return min(configs.chunks(self.count * self.tokens), self.count)

  @property
  def buffer(self) -> tuple[int, int, int]:
    """The shape of a warpgroup's shared memory."""
    return (self.slots, *((self.tokens, self.tile_n) if self.transposed else (self.tile_n, self.tokens)))

  def shape(self, tokens: int, outputs: int, tile_m: int) -> tuple[int, int]:
    """The shape of the kernel's result: copies stop at its last token, but its rows have to be of whole tiles."""
    return (tokens, outputs) if self.transposed else (outputs, pl.cdiv(tokens, tile_m) * tile_m)

  def restore(self, result):
    """The result as [M, N]."""
    return result if self.transposed else result.T


def load(terms: Terms, refs, chunk: Chunk, n, m, layout=plgpu.Layout.WGMMA):
  """The values of the terms for a tile, in the layouts in which `store` needs them.

  All of memory's latency at once, and, where registers allow, before the sums are there.

  Args:
    terms: tells which vectors there are.
    refs: references to them.
    chunk: what is copied at once.
    n, m: the tile's first output and first token, as the references count them.
    layout: of the sums.

  Returns:
    Terms of arrays [tile_n] and, for tokens, lists of arrays, one for each chunk, or scalars.
  """
  terms = terms.placed(refs)
  present = lambda load, ref: None if ref is None else load(ref)
  of_outputs = lambda ref: tiles.load(ref.at[pl.ds(n, chunk.tile_n)], layout.reduce(1), optimized=False)

  def of_tokens(ref):
    if ref.shape == (1,):
      return ref[0]
    return [tiles.load(ref.at[pl.ds(m + i * chunk.tokens, chunk.tokens)], layout.reduce(0), optimized=False)
            for i in range(chunk.count)]

  return Terms(present(of_outputs, terms.output_scale), present(of_tokens, terms.token_scale),
               tuple((of_outputs(column), of_tokens(row)) for column, row in terms.products),
               present(of_outputs, terms.bias), terms.factor)


def apply(sums, terms: Terms, chunk: Chunk, i: int):
  """The results of chunk `i` of a tile, float32.

  Args:
    sums: int32 or float32 [tile_n, tile_m] in the layout that `load` was called with.
    terms: what `load` returned for this tile.
    chunk: the chunks of the tile.
    i: which.
  """
  part = sums[:, i * chunk.tokens : (i + 1) * chunk.tokens].astype(jnp.float32)
  along_n = lambda vector: lax.broadcast_in_dim(vector, part.shape, [0])
  along_m = lambda of: lax.broadcast_in_dim(of[i], part.shape, [1]) if isinstance(of, list) else of
  if terms.token_scale is not None:
    part *= along_m(terms.token_scale)
  if terms.output_scale is not None:
    part *= along_n(terms.output_scale * terms.factor)
  for column, rows in terms.products:
    part += along_n(column) * along_m(rows)
  return part if terms.bias is None else part + along_n(terms.bias)


def store(sums, terms: Terms, out, buffer, chunk: Chunk, n, m) -> None:
  """Applies the terms to a tile of sums and starts the copies to memory.

  Args:
    sums, terms, chunk: as above, the layout that of an accumulator.
    out: reference to the result, of `chunk.shape`.
    buffer: this warpgroup's shared memory, of `chunk.buffer`.
    n, m: the tile's first output and first token.
  """
  for i in range(chunk.count):
    part = apply(sums, terms, chunk, i).astype(buffer.dtype)
    slot = i % chunk.slots
    # The last chunk of the tile before this one may have been in any slot.
    plgpu.wait_smem_to_gmem(chunk.slots - 1 if i else 0, wait_read_only=True)
    if chunk.transposed:
      buffer.at[slot].T[...] = plgpu.layout_cast(part, plgpu.Layout.WGMMA_TRANSPOSED)
    else:
      buffer[slot] = part
    plgpu.commit_smem()
    window, outputs = pl.ds(m + i * chunk.tokens, chunk.tokens), pl.ds(n, chunk.tile_n)
    plgpu.copy_smem_to_gmem(buffer.at[slot], out.at[(window, outputs) if chunk.transposed else (outputs, window)])
