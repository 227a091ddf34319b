"""The implementation `mosaic_gpu` of `kernels.decode_attention`: what it takes."""

import functools

import jax
import jax.numpy as jnp

from kernels import behind as behind_lib
from kernels.mosaic import calls

# Features of a head.
_DIM = 128
# Slots that are copied at once.
TILE = 64
# Queries that may share keys: each is rotated by itself.
_MOST_SHARING = 8


def attend(qkv, cache, positions, angles, window, behind):
  """`attention.decode_attention` on Hopper; the arguments are checked already.

  Raises:
    NotImplementedError: not on this device, not for this problem, or under differentiation.
  """
  calls.check_device()
  return lowered(qkv, cache, positions, angles, window, behind)


def lowered(qkv, cache, positions, angles, window, behind=behind_lib.Behind()):
  """The same, for whatever device it is lowered."""
  batch, kv_heads, slots, dim = cache.keys.shape
  if cache.quantized and qkv.dtype != jnp.bfloat16:
    raise NotImplementedError(f'it takes bfloat16 beside a cache of codes, not {qkv.dtype}')
  if qkv.dtype not in (jnp.bfloat16, jnp.float16):
    raise NotImplementedError(f'it takes bfloat16 or float16, not {qkv.dtype}')
  if dim != _DIM:
    raise NotImplementedError(f'it takes heads of {_DIM} features, not of {dim}')
  if (sharing := qkv.shape[1] // kv_heads - 2) > _MOST_SHARING:
    raise NotImplementedError(f'it takes at most {_MOST_SHARING} queries that share keys, not {sharing}')
  if slots % TILE or not batch:
    raise NotImplementedError(f'it takes rows of a multiple of {TILE} slots, not {batch} of {slots}')
  ends, behind = behind.split()
  operands = dict(qkv=qkv, cache=cache, positions=positions, angles=angles, **ends)
  return calls.guarded(functools.partial(_call, window=window, behind=behind), operands, ())


# Traced and lowered once for all layers of a model that are alike, and not once a layer.
@functools.partial(jax.jit, static_argnames=('window', 'behind'))
def _call(operands: dict, *, window, behind):
  """Calls the kernel."""
  # It imports much of Mosaic, which a process without a GPU need not load.
  from kernels.mosaic import decode_attention  # pylint: disable=g-import-not-at-top
  behind = behind.join(operands)
  operands = {name: operands[name] for name in ('qkv', 'cache', 'positions', 'angles')}
  return decode_attention.attend(**operands, window=window, behind=behind)
