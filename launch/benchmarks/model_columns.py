"""The columns of the benchmark of whole models: trees of generated weights, made in their formats on the device.

No tree is ever in float32: kernels are drawn as bfloat16 values, or as codes with scales that are laid out for the
device block by block, so that a model takes little more memory than its own.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxquant.layers import cache
from jaxquant.layers import device_kernels
from jaxquant.models import config as model_config
from jaxquant.models import decoding
from jaxquant.models import staging
from jaxquant.models import validate
from jaxquant.numerics import formats
from jaxquant.numerics import packing
from jaxquant.numerics import qtensor
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.numerics import two_level

_DEVIATION = 0.02  # of a weight
_RANGE = -3.1, 4.2  # of a static activation


class Column(NamedTuple):
  """The numbers of the blocks' linears; embedding and head are bfloat16 in all columns.

  Attributes:
    weights: bits of a symmetric code, or None for bfloat16.
    activations: bits of a code, symmetric with a scale per token unless `static`, or None for bfloat16.
    group_size: inputs that share a weight scale; None: all of an output.
    two_level: whether scales are snapped (numerics.two_level).
    cache: bits of a symmetric code of keys and values with a scale for each head of each token, or None for bfloat16.
    static: whether activations have one range that is known, asymmetric, with a lower end that is no multiple of the
      step, as training with quantized activations learns it (arXiv:2404.03605).
  """

  weights: int | None = None
  activations: int | None = None
  group_size: int | None = None
  two_level: bool = False
  cache: int | None = None
  static: bool = False


COLUMNS = {
    'bf16': Column(),
    'w8a8': Column(8, 8),
    'w4a16': Column(4, None, 128),
    'w4a8': Column(4, 8),
    'w4a4': Column(4, 4),
    'w4a4 kv8': Column(4, 4, cache=8),
    'w4a4 static': Column(4, 4, static=True),
    'w4a4 static kv8': Column(4, 4, cache=8, static=True),
    'w4a8 g128': Column(4, 8, 128),
    'w4a8 two-level': Column(4, 8, 128, two_level=True),
}


def prepared(config: model_config.TransformerConfig, column: Column, implementation: str) -> dict[str, Any]:
  """A tree of the decoder.

  Args:
    config: the architecture.
    column: its numbers.
    implementation: of its products (layers.linear); where it may run a GPU's kernels here, every block is laid out for
      them as soon as it is made.

  Raises:
    UserError: the column's groups do not divide the inputs of a linear.
  """
  abstract = validate.abstract_params(config)
  sites = [site.name for site in staging.model_sites(config)]
  blocks = {}
  for name, leaf in abstract['layers'].items():
    prefix = f'layers/{name}/'
    inside = [site.removeprefix(prefix) for site in sites if site.startswith(prefix)]
    blocks[name] = device_kernels.prepared(_block(leaf, column, inside, int(name)), implementation)
  rest = {name: leaf for name, leaf in abstract.items() if name != 'layers'}
  return {**_drawn(rest, Column(), config.layers), 'layers': blocks}


def filled_cache(params: dict[str, Any], config: model_config.TransformerConfig, batch: int, slots: int):
  """A `decoding.Cache` for the tree whose keys and values are noise, as large as those of the model."""
  empty = decoding.empty(params, config, batch, slots)
  leaves, structure = jax.tree.flatten(empty.layers)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  return empty._replace(layers=jax.tree.unflatten(structure, [_noise(*pair) for pair in zip(keys, leaves)]))


@functools.partial(jax.jit, donate_argnums=1)
def _noise(key, leaf):
  """Numbers or codes of a cache, or their scales, as random ones."""
  if leaf.dtype == jnp.int8:
    return jax.random.randint(key, leaf.shape, -127, 128, jnp.int8)
  if leaf.ndim == 3:
    return jax.random.uniform(key, leaf.shape, leaf.dtype, 0, 1 / 32)
  return jax.random.normal(key, leaf.shape, leaf.dtype)


def _block(abstract: dict[str, Any], column: Column, sites: list[str], seed: int) -> dict[str, Any]:
  """A block like `abstract`, with quantizers at its sites and operands where the column quantizes them."""
  params = _drawn(abstract, column, seed)
  operands = [f'attention/{name}' for name in cache.OPERANDS]
  for paths, bits, static in ((sites, column.activations, column.static), (operands, column.cache, False)):
    for path in paths if bits is not None else ():
      quantizer = quantizers.ClipQuantizer(*map(jnp.float32, _RANGE), bits) if static else quantizers.DynamicQuantizer(
          formats.IntFormat(bits))
      params = trees.put(params, f'{path}/quantizer', quantizer)
  return params


def _drawn(abstract: dict[str, Any], column: Column, seed: int) -> dict[str, Any]:
  """A tree like `abstract`, its kernels as the column has them; gains are one, biases zero."""
  linears = trees.linears(abstract)
  keys = dict(zip(linears, jax.random.split(jax.random.key(seed), len(linears))))

  def draw(path, leaf):
    parent, _, name = path.rpartition('/')
    if name == 'kernel':
      return _kernel(keys[parent], leaf.shape, column)
    return jnp.full(leaf.shape, name == 'scale', leaf.dtype)

  return trees.map_nodes(draw, abstract)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _kernel(key, shape: tuple[int, int], column: Column):
  """Weights of the same deviation in all columns: [inputs, outputs], bfloat16 or a QTensor."""
  if column.weights is None:
    return _DEVIATION * jax.random.normal(key, shape, jnp.bfloat16)
  fmt = formats.IntFormat(column.weights)
  of_codes, of_scales = jax.random.split(key)
  codes = jax.random.randint(of_codes, shape, fmt.minimum, fmt.maximum + 1, jnp.int8)
  groups = quantize.group_count(shape[0], column.group_size, f'weights of {shape[0]} inputs')
  # The mean square of uniform codes up to m is m (m + 1) / 3, that of the factors of scales 13 / 12.
  scale = _DEVIATION * (fmt.maximum * (fmt.maximum + 1) / 3 * 13 / 12) ** -0.5
  scales = scale * jax.random.uniform(of_scales, (groups, shape[1]), jnp.float32, 0.5, 1.5)
  if column.two_level:
    scales = two_level.snapped(scales, jnp.ones(scales.shape, bool))
  return qtensor.QTensor(packing.pack(codes, fmt, -2), scales, None, fmt, -2, shape[0])
