"""Small decoders for tests that need a whole network: weights, tokens, and the sites and linears of a block."""

import functools

import jax
import jax.numpy as jnp

from jaxquant.models import config as model_config
from jaxquant.models import decoder

STYLES = {
    'llama': {},
    'opt': dict(norm='layer', positions='learned', activation='relu', gated=False, bias=True, tied=True),
}


def config(style: str, dtype: str = 'float32', layers: int = 1) -> model_config.DecoderConfig:
  """Returns the architecture called `style`, with grouped key heads and 16 features."""
  return model_config.DecoderConfig(
      vocabulary=32, width=16, layers=layers, heads=4, kv_heads=2, feed_forward=32, max_length=16, dtype=dtype,
      **STYLES[style])


@functools.cache
def params(style: str, layers: int = 1) -> dict:
  """Returns a float tree with noise on every leaf, so that biases and gains count, and activations of order one."""
  def init(key):
    tree = decoder.Decoder(config(style, layers=layers)).init(key, jnp.zeros((1, 1), jnp.int32))['params']
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    return structure.unflatten(
        [leaf + 0.2 * jax.random.normal(key, leaf.shape, leaf.dtype) for key, leaf in zip(keys, leaves)])

  return jax.jit(init)(jax.random.key(0))


def tokens(rows: int, seed: int = 0) -> jax.Array:
  """Returns int32 [rows, 8] token ids."""
  return jax.random.randint(jax.random.key(seed), (rows, 8), 0, 32, jnp.int32)


@functools.cache
def evaluator(model: model_config.DecoderConfig, implementation: str = 'simulated'):
  """Returns the jitted function (params, ids) -> logits."""
  return jax.jit(lambda tree, ids: decoder.Decoder(model, implementation).apply({'params': tree}, ids))
