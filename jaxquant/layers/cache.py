"""Keys and values of the tokens so far, which later tokens attend to without computing them again.

A Linen collection: each attention holds `keys` and `values`, each [batch, kv_heads, slots, head_dim], as its products
read them: behind the rotation and the operands' specifications. What a token adds to a head lies in one piece, so that
it is written in few transactions. Slot i of a row is for its token at position i. So rows of different lengths need
nothing that fills them up in front, and what a short row left behind its end, where a batch was filled up, lies after
every token that attends, until the token that belongs there replaces it.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

import kernels
from kernels import attention

COLLECTION = 'cache'


def empty(batch: int, slots: int, kv_heads: int, head_dim: int, dtype) -> dict:
  """The entries of one attention, of no tokens."""
  return {name: jnp.zeros((batch, kv_heads, slots, head_dim), dtype) for name in ('keys', 'values')}


def extend(module: nn.Module, keys, values, positions, first: bool = False):
  """Writes keys and values into the slots of their positions.

  Args:
    module: the attention, evaluated with a mutable cache.
    keys, values: [batch, tokens, kv_heads, head_dim].
    positions: int32 [batch, tokens], distinct in each row. Those beyond the slots are dropped, or, of a batch of a
      single token, replace the last slot.
    first: whether the positions of each row are 0, 1, ...

  Returns:
    (keys, values) of all slots, as they are held.
  """
  for name, new in (('keys', keys), ('values', values)):
    held = module.variable(COLLECTION, name)
    new = new.swapaxes(1, 2).astype(held.value.dtype)
    if first:
      fitting = new[:, :, : held.value.shape[2]]
      held.value = jax.lax.dynamic_update_slice(held.value, fitting, (0,) * new.ndim)
    else:
      held.value = attention.written(held.value, new, positions)
  return module.get_variable(COLLECTION, 'keys'), module.get_variable(COLLECTION, 'values')


def attend(module: nn.Module, qkv, positions, angles, window: int | None):
  """Adds a token of every row, and attends from it to all that it sees, by the fastest kernel there is.

  Args:
    module: the attention, evaluated with a mutable cache.
    qkv: of the dtype of the cache, [batch, heads + 2 * kv_heads, head_dim].
    positions, angles, window: see `kernels.decode_attention`.

  Returns:
    The mixed values, [batch, heads, head_dim].
  """
  keys, values = (module.variable(COLLECTION, name) for name in ('keys', 'values'))
  mixed, keys.value, values.value = kernels.decode_attention(
      qkv, keys.value, values.value, positions, angles=angles, window=window, implementation=None)
  return mixed
