"""What the tests of checkpoints save: a state with one array of each kind, and how they compare it."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxquant.numerics import formats
from jaxquant.numerics import nodes
from jaxquant.numerics import qtensor


@nodes.node('table')
class Lookup:
  """A node that only the tests know."""

  table: Any
  name: str
  scale: float
  format: formats.IntFormat


def make(seed: int) -> dict[str, Any]:
  """Nodes, arrays of all dtypes in use, floats that are not finite, None, empty dicts, optimizer states, PRNG keys."""
  generator = np.random.default_rng(seed)
  codes = jnp.asarray(generator.integers(0, 256, (8, 6), np.uint8))
  kernel = qtensor.QTensor(codes, jnp.full((2, 6), seed, jnp.float32), None, formats.parse('int4'), -2, 16)
  floats = generator.standard_normal((40, 30)).astype(np.float32)
  floats[0, :5] = np.nan, np.inf, -np.inf, -0.0, 1e-42
  params = {
      'layers': {'0': {'kernel': kernel, 'bias': None}, '1': {'kernel': jnp.asarray(floats), 'empty': {}}},
      'lookup': Lookup(jnp.arange(-8, 8).astype(jnp.int4), 'codebook', 0.1, formats.parse('uint3')),
      'bfloat16': jnp.asarray(generator.integers(0, 2**16, 9), jnp.uint16).view(jnp.bfloat16),
      'int8': jnp.asarray(generator.integers(-128, 128, 9), jnp.int8),
      'mask': jnp.asarray([True, False])}
  moments = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init({'w': params['layers']['1']['kernel']})
  keys = {'one': jax.random.key(seed), 'many': jax.random.split(jax.random.key(seed, impl='rbg'), 3)}
  return {'params': params, 'optimizer': moments, 'step': jnp.int32(seed), 'keys': keys}


def shapes() -> dict[str, Any]:
  """What `make` returns, as ShapeDtypeStructs."""
  return jax.eval_shape(lambda: make(0))


def digest(tree: Any) -> str:
  """SHA-256 of the structure, the shapes, the dtypes and every bit of a tree."""
  leaves, structure = jax.tree.flatten(tree)
  result = hashlib.sha256(str(structure).encode())
  for leaf in leaves:
    result.update(f'{leaf.dtype}{leaf.shape}'.encode())
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    result.update(np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes())
  return result.hexdigest()
