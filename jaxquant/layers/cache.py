"""Keys and values of the tokens so far, which later tokens attend to without computing them again.

A Linen collection: each attention holds a `kernels.Cache` by the names of its arrays, as its products read them: behind
the rotation and the operands' specifications. Where these quantize keys and values to 8 bits token by token, the cache
holds the codes, a byte each, with a scale for each head of each token, and stands for exactly what the whole forward
computes with. What a token adds to a head lies in one piece, so that it is written in few transactions. Slot i of a row
is for its token at position i. So rows of different lengths need nothing that fills them up in front, and what a short
row left behind its end, where a batch was filled up, lies after every token that attends, until the token that belongs
there replaces it.
"""

from flax import linen as nn
import jax.numpy as jnp

import kernels
from jaxquant.layers import inputs
from jaxquant.numerics import formats
from jaxquant.numerics import quantizers
from kernels import attention

COLLECTION = 'cache'
OPERANDS = ('key', 'value')

_QUANTIZER = quantizers.DynamicQuantizer(formats.IntFormat(8))


def holds_codes(specifications: dict) -> bool:
  """Whether a cache holds keys and values as codes, by the specifications of an attention's operands."""
  return all(specifications.get(name) == {'quantizer': _QUANTIZER} for name in OPERANDS)


def writable(module: nn.Module, specifications: dict) -> bool:
  """Whether a kernel that writes into the cache makes of keys and values what their specifications would.

  It does without any in a cache of numbers, and with those of `holds_codes` in one of codes. What else is specified is
  none of the cache's.
  """
  if _held(module).quantized:
    return holds_codes(specifications)
  return not any(name in specifications for name in OPERANDS)


def empty(batch: int, slots: int, kv_heads: int, head_dim: int, dtype, codes: bool = False) -> dict:
  """The entries of one attention, of no tokens; with `codes` instead of numbers of the dtype."""
  of_slots = batch, kv_heads, slots
  numbers = [jnp.zeros((*of_slots, head_dim), jnp.int8 if codes else dtype) for _ in OPERANDS]
  scales = [jnp.zeros(of_slots, jnp.float32) for _ in OPERANDS] if codes else ()
  return _entries(kernels.Cache(*numbers, *scales))


def extend(module: nn.Module, keys: inputs.Activation, values: inputs.Activation, positions, first: bool = False):
  """Writes keys and values into the slots of their positions.

  Args:
    module: the attention, evaluated with a mutable cache.
    keys, values: of [batch, tokens, kv_heads, head_dim], with codes where the cache has some.
    positions: int32 [batch, tokens], distinct in each row. Those beyond the slots are dropped, or, of a batch of a
      single token, replace the last slot.
    first: whether the positions of each row are 0, 1, ...

  Returns:
    (keys, values) of all slots, [batch, kv_heads, slots, head_dim] of the dtype of `keys`.

  Raises:
    ValueError: the cache is one of codes, and there are none.
  """
  held = _held(module)
  by_head = lambda a: a.swapaxes(1, 2)
  if held.quantized:
    codes = keys.codes, values.codes
    if None in codes:
      raise ValueError('a cache of codes is written by trees that quantize keys and values, and this one does not')
    new = kernels.Cache(*(by_head(c.codes) for c in codes), *(by_head(c.scale[..., 0]) for c in codes))
  else:
    new = kernels.Cache(*(by_head(a.values).astype(held.keys.dtype) for a in (keys, values)))
  held = attention.extended(held, new, positions, first)
  _hold(module, held)
  return attention.dense(held, keys.values.dtype)


def attend(
    module: nn.Module, qkv, positions, angles, window: int | None, static: kernels.StaticRange | None, bits: int):
  """Adds a token of every row, and attends from it to all that it sees, by the fastest kernel there is.

  Args:
    module: the attention, evaluated with a mutable cache.
    qkv: [batch, heads + 2 * kv_heads, head_dim], of the dtype of a cache that holds no codes.
    positions, angles, window: see `kernels.decode_attention`.
    static, bits: see `inputs.Made`.

  Returns:
    The mixed values, or their codes, [batch, heads, head_dim].
  """
  mixed, held = kernels.decode_attention(
      qkv, _held(module), positions, angles=angles, window=window, implementation=None,
      behind=kernels.Behind(static=static, bits=bits))
  _hold(module, held)
  return mixed


def _entries(cache: kernels.Cache) -> dict:
  return {name: array for name, array in cache._asdict().items() if array is not None}


def _held(module: nn.Module) -> kernels.Cache:
  return kernels.Cache(**{name: module.get_variable(COLLECTION, name) for name in kernels.Cache._fields})


def _hold(module: nn.Module, cache: kernels.Cache) -> None:
  for name, array in _entries(cache).items():
    module.put_variable(COLLECTION, name, array)
