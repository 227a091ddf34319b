"""Small models for tests that need a whole network: architectures, weights, tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxquant.calibration import sites
from jaxquant.models import config as model_config
from jaxquant.models import staging
from jaxquant.numerics import trees

STYLES = {
    'llama': {},
    'opt': dict(norm='layer', positions='learned', activation='relu', gated=False, bias=True, tied=True),
    'bert': dict(norm='layer', positions='learned', activation='gelu', gated=False, bias=True, tied=True, causal=False,
                 post_norm=True, token_types=2),
}

# Everything that an architecture may ask for, by the family that does.
FAMILIES = {
    **STYLES,
    'llama, biases': dict(bias=True, rope_scaling='llama3', rope_factor=8.0, rope_original_length=16),
    'mistral': dict(sliding_window=3),
    'qwen2': dict(qkv_bias=True, tied=True),
    'qwen3': dict(head_norm=True, head_dim=6),
    'opt, post-norm': dict(STYLES['opt'], post_norm=True, opening_norm=False, embedding_width=8),
    'bloom': dict(STYLES['opt'], positions='alibi', activation='gelu_tanh', embedding_norm=True),
    'gpt2': dict(STYLES['opt'], activation='gelu_tanh'),
    'roberta': dict(STYLES['bert'], token_types=1),
    'bert, no head': dict(STYLES['bert'], head=False),
}


def config(style: str, dtype: str = 'float32', layers: int = 1) -> model_config.TransformerConfig:
  """Returns the architecture called `style`, with grouped key heads and 16 features."""
  return model_config.TransformerConfig(
      vocabulary=32, width=16, layers=layers, heads=4, kv_heads=2, feed_forward=32, max_length=16, dtype=dtype,
      **FAMILIES[style])


@functools.cache
def params(style: str, layers: int = 1) -> dict:
  """Returns a float tree of `noise`."""
  return noise(config(style, layers=layers))


def noise(config: model_config.TransformerConfig) -> dict:
  """Returns a float tree: kernels and biases are noise that makes activations of order one, gains are one plus that."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(
      staging.make(config).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1), jnp.int32))['params']
  size = 0.8 * config.width**-0.5
  made = lambda path, leaf: (path[-1].key == 'scale') + size * rng.normal(size=leaf.shape)
  return jax.tree_util.tree_map_with_path(lambda path, leaf: jnp.asarray(made(path, leaf), leaf.dtype), shapes)


@functools.cache
def params_with_outliers(style: str) -> dict:
  """Returns `params` of one layer, a channel of which sticks out of what each norm puts out: what folds are for."""
  tree = params(style)
  for gain in ('attention_norm/scale', 'mlp_norm/scale'):
    tree = trees.put(tree, f'layers/0/{gain}', trees.get(tree, f'layers/0/{gain}').at[5].multiply(6.0))
  return tree


def foldable_sites(style: str) -> tuple[sites.Site, ...]:
  """Returns the sites of a model of one layer at which scales can be folded: there is a producer, and no tied table."""
  found = staging.model_sites(config(style))
  return tuple(site for site in found if site.producer and not any(map(trees.is_table, site.consumers)))


def tokens(rows: int, seed: int = 0) -> jax.Array:
  """Returns int32 [rows, 8] token ids."""
  return jnp.asarray(np.random.default_rng(seed).integers(0, 32, (rows, 8)), jnp.int32)


def quick_jit(function, **options):
  """Returns `jax.jit(function, **options)`, compiled without LLVM's optimizations, that is, in half the time."""
  return jax.jit(function, compiler_options={'xla_backend_optimization_level': 0}, **options)


def exact_jit(function, **options):
  """Returns `jax.jit(function, **options)`, compiled by the emitters that users have, not as tests/compiling.py says.

  For unlike programs that have to give the same bits: others order sums as they like.
  """
  return _exact_jit(function, {}, options)


def unoptimized_jit(function, **options):
  """The same without LLVM's optimizations: where more than products of codes has to agree, norms for instance."""
  return _exact_jit(function, {'xla_backend_optimization_level': 0}, options)


def _exact_jit(function, level, options):
  return jax.jit(function, compiler_options={'xla_backend_extra_options': '', **level}, **options)


@functools.cache
def evaluator(model: model_config.TransformerConfig, implementation: str = 'simulated', jit=jax.jit):
  """Returns the function (params, ids) -> logits, jitted by `jit`."""
  return jit(lambda tree, ids: staging.make(model, implementation).apply({'params': tree}, ids))
