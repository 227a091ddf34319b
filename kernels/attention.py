"""Attention of single tokens over the cache that each of them joins: a step of decoding.

The parts of which XLA's implementation is made serve steps of several tokens too: `rotate`, `written`, `attend`.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from kernels import checks
from kernels import dispatch
from kernels.mosaic import attention as mosaic


def decode_attention(qkv, keys, values, positions, *, angles=None, window: int | None = None, implementation=None):
  """Rotates a token of every row, writes its keys and values into the cache, and attends to all that it sees there.

  Args:
    qkv: floating [batch, heads + 2 * kv_heads, head_dim], the queries, keys and values of the tokens.
    keys, values: of the same dtype, [batch, kv_heads, slots, head_dim]; slot i of a row is for its token at position i.
    positions: int32 [batch], where the tokens stand, from 0. What is attended to beyond the slots is undefined, and so
      is what then becomes of the last one.
    angles: (cosine, sine), each float32 [batch, head_dim / 2], by which queries and keys turn; None for no rotation.
    window: tokens that a token attends to, itself included; None: all up to it.
    implementation: `xla`; `mosaic_gpu`, one kernel, which reads few slots behind the token's, and rounds weights before
      they are divided by their sum; None: the fastest that takes the problem on this device.

  Returns:
    (mixed values [batch, heads, head_dim], keys, values), the last two with the tokens; in place under jit, where the
    ones that were given are not needed any more.

  Raises:
    ValueError: arrays that do not fit each other, a window of less than one token, or an unknown implementation.
    NotImplementedError: the implementation that was asked for does not take this problem, or not on this device.
  """
  checks.implementation(implementation, _FUNCTIONS)
  _check(qkv, keys, values, positions, angles, window)
  arguments = dict(qkv=qkv, keys=keys, values=values, positions=positions, angles=angles, window=window)
  problem = f'attention of {qkv.dtype} {list(qkv.shape)} over {list(keys.shape)}'
  return dispatch.call(_FUNCTIONS, implementation, arguments, problem)


def _check(qkv, keys, values, positions, angles, window) -> None:
  """Raises `ValueError` for what does not fit."""
  if angles is not None and not (isinstance(angles, (tuple, list)) and len(angles) == 2):
    raise ValueError(f'angles must be a pair of arrays, cosine and sine, not {angles!r}')
  pair = {} if angles is None else dict(zip(('cosine', 'sine'), angles))
  checks.arrays(qkv=qkv, keys=keys, values=values, positions=positions, **pair)
  if qkv.ndim != 3 or not jnp.issubdtype(qkv.dtype, jnp.floating):
    raise ValueError(f'qkv must be floating [batch, heads, head_dim], not {qkv.dtype} {list(qkv.shape)}')
  batch, heads, dim = qkv.shape
  kv_heads, slots = keys.shape[1:3] if keys.ndim == 4 else (0, 0)
  if not kv_heads or not slots or heads <= 2 * kv_heads or heads % kv_heads:
    raise ValueError(f'keys of shape {keys.shape} do not fit qkv of shape {qkv.shape}')
  of_cache = (batch, kv_heads, slots, dim), qkv.dtype
  for name, array, shape, dtype in (
      ('keys', keys, *of_cache), ('values', values, *of_cache), ('positions', positions, (batch,), jnp.int32),
      *((name, array, (batch, dim // 2), jnp.float32) for name, array in pair.items())):
    if array.shape != shape or array.dtype != dtype:
      raise ValueError(f'{name} must be {jnp.dtype(dtype)} {list(shape)}, not {array.dtype} {list(array.shape)}')
  if angles is not None and dim % 2:
    raise ValueError(f'heads of {dim} features have no pairs to turn')
  if window is not None and (not isinstance(window, int) or window < 1):
    raise ValueError(f'a window is an integer of at least one token, not {window!r}')


def rotate(x, angles):
  """Rotates x [..., heads, head_dim], pairs of features half a head apart, in float32 (RoFormer, arXiv:2104.09864).

  Args:
    x: floating.
    angles: (cosine, sine), each float32 [..., 1, head_dim / 2].
  """
  cos, sin = angles
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def written(held, new, positions):
  """Keys or values `held` [batch, kv_heads, slots, head_dim] with `new`, of as many tokens as there are positions.

  Args:
    held, new: of the same dtype and axes.
    positions: int32 [batch, tokens], the slots of the tokens. Those beyond them are dropped, or, of a single token,
      replace the last slot.
  """
  if positions.size == 1:  # in place, without a look at the slot as it was
    return jax.lax.dynamic_update_slice_in_dim(held, new, positions[0, 0], axis=2)
  # Every axis up to that of the slots has an index: of some only, XLA would bring those to the front, by a copy.
  rows, heads = jnp.ogrid[: new.shape[0], : new.shape[1]]
  at = rows[..., None], heads[..., None], positions[:, None]
  return jnp.asarray(held).at[at].set(new, mode='drop', unique_indices=True)


def seen(positions, keys: int, window: int | None):
  """Which keys a query at its position, int [batch, queries], attends to: bool [batch, 1, queries, keys]."""
  distances = positions[:, None, :, None] - jnp.arange(keys)
  return distances >= 0 if window is None else (distances >= 0) & (distances < window)


def attend(q, keys, values, positions, *, window: int | None = None, bias: Any = None, prepare=lambda weights: weights):
  """Causal attention of q [batch, tokens, heads, head_dim] over the slots of a cache.

  Args:
    q: of the dtype of the cache.
    keys, values, window: see `decode_attention`.
    positions: int32 [batch, tokens], the last slot that each query sees.
    bias: float32 [batch, heads, tokens, slots], added to the scores, or None.
    prepare: what happens to the weights [batch, heads, tokens, slots] before they meet the values.

  Returns:
    [batch, tokens, heads, head_dim] in the dtype of `q`.
  """
  batch, tokens, heads, dim = q.shape
  kv_heads, slots = keys.shape[1:3]
  grouped = q.reshape(batch, tokens, kv_heads, heads // kv_heads, dim)
  scores = jnp.einsum('bqhgd,bhkd->bhgqk', grouped, keys, preferred_element_type=jnp.float32) / math.sqrt(dim)
  scores = scores.reshape(batch, heads, tokens, slots)
  if bias is not None:
    scores += bias
  # A query that fills a batch up may see nothing; it has to stay finite.
  scores = jnp.where(seen(positions, slots, window), scores, jnp.finfo(jnp.float32).min)
  weights = prepare(jax.nn.softmax(scores, axis=-1).astype(q.dtype))
  weights = weights.reshape(batch, kv_heads, heads // kv_heads, tokens, slots)
  return jnp.einsum('bhgqk,bhkd->bqhgd', weights, values).reshape(q.shape)


def _xla(qkv, keys, values, positions, angles, window):
  kv_heads = keys.shape[1]
  q, k, v = jnp.split(qkv[:, None], (qkv.shape[1] - 2 * kv_heads, qkv.shape[1] - kv_heads), axis=-2)
  if angles is not None:
    angles = [part[:, None, None] for part in angles]
    q, k = rotate(q, angles), rotate(k, angles)
  positions = positions[:, None]
  keys, values = (written(held, new.swapaxes(1, 2), positions) for held, new in ((keys, k), (values, v)))
  return attend(q, keys, values, positions, window=window)[:, 0], keys, values


_FUNCTIONS = {'xla': _xla, 'mosaic_gpu': mosaic.attend}
