"""Decoding: a decoder's logits for the next token, from a cache of those before it.

`extend` is a pure function of (parameters, cache, tokens): with the prompts of a batch, filled up behind to one width,
it is the prefill; with one token a row, the step. Each row stands at its own length. It runs whatever the tree holds,
as the whole forward does, and gives its logits; only ranges that a quantizer takes from a whole tensor of activations
depend on what is evaluated together.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxquant import errors
from jaxquant.layers import cache as cache_layers
from jaxquant.models import config as model_config
from jaxquant.models import staging


class Cache(NamedTuple):
  """What a batch of texts has left behind.

  Attributes:
    layers: the collection of `layers.cache`: keys and values of every layer, in the compute dtype or as codes.
    lengths: int32 [batch], tokens of each row so far.
  """

  layers: Any
  lengths: Any


def empty(params: Any, config: model_config.TransformerConfig, batch: int, slots: int) -> Cache:
  """A cache of no tokens.

  Args:
    params: the tree that will fill it, which says whether keys and values have codes (layers.cache).
    config: the decoder.
    batch: rows.
    slots: tokens that a row may come to have, prompt included; at most the model's `max_length`.

  Raises:
    UserError: the model is no decoder, or has a shorter context.
  """
  if not config.causal:
    raise errors.UserError('an encoder sees all tokens at once: it has no cache and generates nothing')
  if slots > config.max_length:
    raise errors.UserError(f'{slots} tokens exceed the model\'s context length of {config.max_length}')
  held = lambda block: cache_layers.empty(batch, slots, config.kv_heads, config.head_dim, config.compute_dtype,
                                          codes=cache_layers.holds_codes(block['attention']))
  layers = {name: {'attention': held(block)} for name, block in params['layers'].items()}
  return Cache({'layers': layers}, jnp.zeros(batch, jnp.int32))


@functools.partial(jax.jit, static_argnames=('config', 'implementation', 'first'), donate_argnames='cache')
def extend(params: Any, cache: Cache, tokens, counts, *, config: model_config.TransformerConfig,
           implementation: str = 'simulated', first: bool = False):
  """Evaluates the next tokens of every row.

  Args:
    params: a tree of the decoder, float or quantized.
    cache: of the tokens before them; donated, so that it is replaced and not copied.
    tokens: int32 [batch, width]; of row i, the first counts[i] are its next tokens and the others do not matter.
    counts: int32 [batch], from 1 to `width`; with the row's length they must not exceed the slots of the cache.
    config: the decoder.
    implementation: how codes meet codes (layers.linear).
    first: whether the cache holds no token yet. Attention then is that of the tokens over each other, for which there
      are fused kernels, and not over slots.

  Returns:
    (logits of the token after each row's last, [batch, vocabulary] in the compute dtype; the cache with the tokens).
  """
  positions = cache.lengths[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)

  def last_logits(decoder):
    x = decoder.layers(decoder.embed(tokens, positions), positions, first)
    return decoder.logits(jnp.take_along_axis(x, (counts - 1)[:, None, None], axis=1))[:, 0]

  logits, changed = staging.make(config, implementation).apply(
      {'params': params, cache_layers.COLLECTION: cache.layers}, method=last_logits, mutable=[cache_layers.COLLECTION])
  return logits, Cache(changed[cache_layers.COLLECTION], cache.lengths + counts)
