"""Keys and values of the tokens so far, which later tokens attend to without computing them again.

A Linen collection: each attention holds `keys`, [batch, kv_heads, slots, head_dim], and `values`, [batch, kv_heads,
head_dim, slots], as its products read them: behind the rotation and the operands' specifications, and with what a
product sums over at the end, so that a single query reads memory in order. Slot i of a row is for its token at position
i. So rows of different lengths need nothing that fills them up in front, and what a short row left behind its end,
where a batch was filled up, lies after every token that attends, until the token that belongs there replaces it.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

COLLECTION = 'cache'


def empty(batch: int, slots: int, kv_heads: int, head_dim: int, dtype) -> dict:
  """The entries of one attention, of no tokens."""
  return {'keys': jnp.zeros((batch, kv_heads, slots, head_dim), dtype),
          'values': jnp.zeros((batch, kv_heads, head_dim, slots), dtype)}


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
  for name, new, order, axis in (('keys', keys, (0, 2, 1, 3), 2), ('values', values, (0, 2, 3, 1), 3)):
    held = module.variable(COLLECTION, name)
    new = new.transpose(order).astype(held.value.dtype)
    held.value = _written(held.value, new, positions, axis, first)
  return module.get_variable(COLLECTION, 'keys'), module.get_variable(COLLECTION, 'values')


def _written(held, new, positions, axis: int, first: bool):
  """`held` with `new`, of the same axes, in the slots `positions` of `axis`."""
  if first:
    fitting = jax.lax.slice_in_dim(new, 0, min(new.shape[axis], held.shape[axis]), axis=axis)
    return jax.lax.dynamic_update_slice(held, fitting, (0,) * held.ndim)
  if positions.size == 1:  # in place, without a look at the slot as it was
    return jax.lax.dynamic_update_slice_in_dim(held, new, positions[0, 0], axis)
  # Every axis up to that of the slots has an index: of some only, XLA would bring those to the front, by a copy.
  at = [jnp.arange(size).reshape([-1 if i == other else 1 for other in range(axis + 1)])
        for i, size in enumerate(new.shape[:axis])]
  at.append(positions.reshape(len(positions), *(1,) * (axis - 1), -1))
  return held.at[tuple(at)].set(new, mode='drop', unique_indices=True)
