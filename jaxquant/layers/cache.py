"""Keys and values of the tokens so far, which later tokens attend to without computing them again.

A Linen collection: each attention holds `keys` and `values`, [batch, slots, kv_heads, head_dim], as its products read
them: behind the rotation and the operands' specifications. Slot i of a row is for its token at position i. So rows of
different lengths need nothing that fills them up in front, and what a short row left behind its end, where a batch was
filled up, lies after every token that attends, until the token that belongs there replaces it.
"""

import jax.numpy as jnp
from flax import linen as nn

COLLECTION = 'cache'


def extend(module: nn.Module, keys, values, positions):
  """Writes keys and values into the slots of their positions.

  Args:
    module: the attention, evaluated with a mutable cache.
    keys, values: [batch, tokens, kv_heads, head_dim].
    positions: int32 [batch, tokens], distinct in each row; those beyond the slots are dropped.

  Returns:
    (keys, values) of all slots, [batch, slots, kv_heads, head_dim].
  """
  rows = jnp.arange(positions.shape[0])[:, None]
  for name, new in (('keys', keys), ('values', values)):
    held = module.variable(COLLECTION, name)
    held.value = held.value.at[rows, positions].set(new.astype(held.value.dtype), mode='drop')
  return module.get_variable(COLLECTION, 'keys'), module.get_variable(COLLECTION, 'values')
