"""Attention of single tokens over the cache that each of them joins: a step of decoding.

The parts of which XLA's implementation is made serve steps of several tokens too: `rotate`, `extended`, `dense`,
`attend`.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kernels import activations
from kernels import behind as behind_lib
from kernels import checks
from kernels import dispatch
from kernels.mosaic import attention as mosaic


class Cache(NamedTuple):
  """Keys and values of the tokens so far: slot i of a row is for its token at position i.

  Attributes:
    keys, values: floating, or int8 codes, [batch, kv_heads, slots, head_dim].
    key_scale, value_scale: of codes, float32 [batch, kv_heads, slots], a scale for each head of each token: value =
      scale * code; None where there are no codes.
  """

  keys: Any
  values: Any
  key_scale: Any = None
  value_scale: Any = None

  @property
  def quantized(self) -> bool:
    """Whether there are codes."""
    return self.key_scale is not None


def decode_attention(
    qkv, cache: Cache, positions, *, angles=None, window: int | None = None, implementation=None,
    behind: behind_lib.Behind = behind_lib.Behind()):
  """Rotates a token of every row, writes its keys and values into the cache, and attends to all that it sees there.

  Args:
    qkv: floating [batch, heads + 2 * kv_heads, head_dim], the queries, keys and values of the tokens.
    cache: of the dtype of qkv, or of codes: then keys and values are quantized as `quantize_activations` does it, head
      by head, behind the rotation, and tokens attend to each other and to themselves as the cache has them.
    positions: int32 [batch], where the tokens stand, from 0. What is attended to beyond the slots is undefined, and so
      is what then becomes of the last one.
    angles: (cosine, sine), each float32 [batch, head_dim / 2], by which queries and keys turn; None for no rotation.
    window: tokens that a token attends to, itself included; None: all up to it.
    implementation: `xla`; `mosaic_gpu`, one kernel, which reads few slots behind the token's, rounds weights before
      they are divided by their sum, takes codes beside bfloat16 only, and multiplies by inverses of scales where `xla`
      divides, so that a code on an edge may be its neighbor; None: the fastest that takes the problem on this device.
    behind: what becomes of the mixed values: codes on a static range, without a gate.

  Returns:
    (mixed values [batch, heads, head_dim], of the dtype of qkv or codes int8; the cache with the tokens), the cache in
    place under jit, where the one that was given is not needed any more.

  Raises:
    ValueError: arrays that do not fit each other, a window of less than one token, a gate, a range of anything but
      scalars, or an unknown implementation.
    NotImplementedError: the implementation that was asked for does not take this problem, or not on this device.
  """
  checks.implementation(implementation, _FUNCTIONS)
  _check(qkv, cache, positions, angles, window)
  if getattr(behind, 'gate', None):
    raise ValueError('mixed values have no gate')
  behind_lib.check(behind, qkv.shape[-1])
  arguments = dict(qkv=qkv, cache=cache, positions=positions, angles=angles, window=window, behind=behind)
  problem = f'attention of {qkv.dtype} {list(qkv.shape)} over {cache.keys.dtype} {list(cache.keys.shape)}'
  return dispatch.call(_FUNCTIONS, implementation, arguments, problem)


def _check(qkv, cache, positions, angles, window) -> None:
  """Raises `ValueError` for what does not fit."""
  if not isinstance(cache, Cache):
    raise ValueError(f'a cache is a kernels.Cache, not a {type(cache).__name__}')
  if angles is not None and not (isinstance(angles, (tuple, list)) and len(angles) == 2):
    raise ValueError(f'angles must be a pair of arrays, cosine and sine, not {angles!r}')
  pair = {} if angles is None else dict(zip(('cosine', 'sine'), angles))
  scales = cache._asdict() if cache.quantized or cache.value_scale is not None else {}
  checks.arrays(**{**dict(qkv=qkv, keys=cache.keys, values=cache.values, positions=positions), **scales, **pair})
  if qkv.ndim != 3 or not jnp.issubdtype(qkv.dtype, jnp.floating):
    raise ValueError(f'qkv must be floating [batch, heads, head_dim], not {qkv.dtype} {list(qkv.shape)}')
  batch, heads, dim = qkv.shape
  kv_heads, slots = cache.keys.shape[1:3] if cache.keys.ndim == 4 else (0, 0)
  if not kv_heads or not slots or heads <= 2 * kv_heads or heads % kv_heads:
    raise ValueError(f'keys of shape {cache.keys.shape} do not fit qkv of shape {qkv.shape}')
  if not scales and jnp.issubdtype(cache.keys.dtype, jnp.integer):
    raise ValueError(f'keys are codes, {cache.keys.dtype}: they need key_scale and value_scale')
  of_slots = (batch, kv_heads, slots)
  numbers, scale = ((*of_slots, dim), jnp.int8 if scales else qkv.dtype), (of_slots, jnp.float32)
  wanted = dict(keys=numbers, values=numbers, positions=((batch,), jnp.int32),
                **dict.fromkeys(('key_scale', 'value_scale') if scales else (), scale),
                **dict.fromkeys(pair, ((batch, dim // 2), jnp.float32)))
  for name, (shape, dtype) in wanted.items():
    array = (cache._asdict() | pair | {'positions': positions})[name]
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


def extended(cache: Cache, new: Cache, positions, first: bool = False) -> Cache:
  """The cache with tokens in the slots of their positions.

  Args:
    cache: to write into.
    new: the tokens, in place of slots; of the same dtypes.
    positions: int32 [batch, tokens], distinct in each row. Those beyond the slots are dropped, or, of a single token in
      all, replace the last slot.
    first: whether the positions of each row are 0, 1, ...
  """
  if first:
    write = lambda held, new: jax.lax.dynamic_update_slice(held, new[:, :, : held.shape[2]], (0,) * new.ndim)
  elif positions.size == 1:  # in place, without a look at the slot as it was
    write = lambda held, new: jax.lax.dynamic_update_slice_in_dim(held, new, positions[0, 0], axis=2)
  else:
    # Every axis up to that of the slots has an index: of some only, XLA would bring those to the front, by a copy.
    rows, heads = jnp.ogrid[: new.keys.shape[0], : new.keys.shape[1]]
    at = rows[..., None], heads[..., None], positions[:, None]
    write = lambda held, new: jnp.asarray(held).at[at].set(new, mode='drop', unique_indices=True)
  return jax.tree.map(write, cache, new)


def quantized(keys, values) -> Cache:
  """Floating keys and values, [..., head_dim], as a cache of codes holds them."""
  (keys, key_scale), (values, value_scale) = (
      activations.quantize_activations(x, bits=8, implementation='xla')[:2] for x in (keys, values))
  return Cache(keys, values, key_scale[..., 0], value_scale[..., 0])


def dense(cache: Cache, dtype):
  """(keys, values), of codes the values that they stand for, in the dtype."""
  if not cache.quantized:
    return cache.keys, cache.values
  return tuple((codes.astype(jnp.float32) * scale[..., None]).astype(dtype)
               for codes, scale in ((cache.keys, cache.key_scale), (cache.values, cache.value_scale)))


def seen(positions, keys: int, window: int | None):
  """Which keys a query at its position, int [batch, queries], attends to: bool [batch, 1, queries, keys]."""
  distances = positions[:, None, :, None] - jnp.arange(keys)
  return distances >= 0 if window is None else (distances >= 0) & (distances < window)


def attend(q, keys, values, positions, *, window: int | None = None, bias: Any = None, prepare=lambda weights: weights):
  """Causal attention of q [batch, tokens, heads, head_dim] over the slots of a cache.

  Args:
    q: of the dtype of keys and values.
    keys, values: as `dense` returns them.
    window: see `decode_attention`.
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


def _xla(qkv, cache, positions, angles, window, behind):
  heads = qkv.shape[1] - 2 * cache.keys.shape[1]
  q, k, v = jnp.split(qkv[:, None], (heads, heads + cache.keys.shape[1]), axis=-2)
  if angles is not None:
    angles = [part[:, None, None] for part in angles]
    q, k = rotate(q, angles), rotate(k, angles)
  positions = positions[:, None]
  new = (quantized if cache.quantized else Cache)(k.swapaxes(1, 2), v.swapaxes(1, 2))
  cache = extended(cache, new, positions)
  mixed = attend(q, *dense(cache, q.dtype), positions, window=window)[:, 0]
  return behind_lib.apply(mixed, behind, mixed.dtype), cache


_FUNCTIONS = {'xla': _xla, 'mosaic_gpu': mosaic.attend}
