"""Does a tree fit a model? Compared by path and logical shape before the first apply: Linen's own check is off."""

import functools

import jax
import jax.numpy as jnp

from jaxquant import errors
from jaxquant.layers import attention
from jaxquant.layers import inputs
from jaxquant.models import config as model_config
from jaxquant.models import staging
from jaxquant.numerics import hadamard
from jaxquant.numerics import nodes
from jaxquant.numerics import qtensor
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees

# Entries of an input specification that are nodes; the others are arrays.
_NODES = {'quantizer': quantizers.INPUT_QUANTIZERS, 'hadamard': hadamard.Hadamard}


def abstract_params(config: model_config.TransformerConfig):
  """Shapes and dtypes of the model's float tree, as `jax.ShapeDtypeStruct`s."""
  return jax.tree.map(lambda leaf: leaf, _abstract_params(config))  # a tree of the caller's own


@functools.cache
def _abstract_params(config):
  ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  return jax.eval_shape(staging.make(config).init, jax.random.key(0), ids)['params']


def validate(params: dict, config: model_config.TransformerConfig) -> None:
  """Raises `CheckpointError` naming the first paths at which `params` does not fit the model.

  Kernels may be arrays or QTensors of the model's logical shapes; beside the model's own arrays only input
  specifications at its sites and linears, attention operands, biases and kernel quantizers of linears, and what undoes
  a fold for the residual branches of post-norm blocks may stand.
  """
  abstract = abstract_params(config)
  expected = {path: leaf.shape for path, leaf in trees.arrays(abstract).items()}
  linears = set(trees.linears(abstract))
  specified = {site.name for site in staging.model_sites(config)}
  specified |= {f'{path}/input' for path in linears - {'embedding', 'positions', 'types'}}
  specified |= {f'layers/{i}/attention/{name}' for i in range(config.layers) for name in attention.OPERANDS}
  for site in staging.model_sites(config):
    if site.residual and trees.get(params, site.residual) is not None:  # A block reads both entries or neither.
      expected |= dict.fromkeys((f'{site.residual}/scale', f'{site.residual}/shift'), (config.width,))
  found, problems = set(), []
  for path, value in trees.walk(params):
    if value is None or isinstance(value, dict):
      continue
    found.add(path)
    parent, _, key = path.rpartition('/')
    if path in expected:
      fits = not nodes.is_node(value) or key == 'kernel' and isinstance(value, qtensor.QTensor)
      if fits and tuple(value.shape) != expected[path]:
        problems.append(f'{path}: shape {tuple(value.shape)} instead of {expected[path]}')
    elif parent in specified and key in inputs.ENTRIES:
      fits = isinstance(value, _NODES[key]) if key in _NODES else not nodes.is_node(value)
    elif parent in linears and key == 'kernel_quantizer':
      fits = isinstance(value, quantizers.WeightQuantizer)
    elif parent in linears and key == 'bias':  # of a shift that was folded into a linear without one
      fits = not nodes.is_node(value)
      if fits and tuple(value.shape) != expected[f'{parent}/kernel'][-1:]:
        problems.append(f'{path}: shape {tuple(value.shape)} instead of {expected[f"{parent}/kernel"][-1:]}')
    else:
      fits = True
      problems.append(f'{path}: not in the model')
    if not fits:
      kind = f'a {type(value).__name__}' if nodes.is_node(value) else 'an array'
      problems.append(f'{path}: {kind} cannot stand here')
  problems += [f'{path}: missing' for path in expected if path not in found]
  if problems:
    more = f'; and {len(problems) - 3} more' if len(problems) > 3 else ''
    raise errors.CheckpointError(f'the tree does not fit the model: {"; ".join(problems[:3])}{more}')
