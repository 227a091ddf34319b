"""Does a tree fit a model? Compared by path and logical shape before the first apply, since Linen's own check is off."""

import jax
import jax.numpy as jnp

from jaxquant import errors
from jaxquant.models import config as model_config
from jaxquant.models import decoder
from jaxquant.numerics import nodes
from jaxquant.numerics import qtensor
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees

_SPECIFICATIONS = ('gather', 'shift', 'scale', 'quantizer')
_OPERANDS = ('query', 'key', 'value', 'probabilities')


def abstract_params(config: model_config.DecoderConfig):
  """Shapes and dtypes of the model's float tree, as `jax.ShapeDtypeStruct`s."""
  ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  return jax.eval_shape(decoder.Decoder(config).init, jax.random.key(0), ids)['params']


def validate(params: dict, config: model_config.DecoderConfig) -> None:
  """Raises `CheckpointError` naming the first paths at which `params` does not fit the model.

  Kernels may be arrays or QTensors of the model's logical shapes; beside the model's own arrays only input
  specifications at its sites and linears, attention operands, and kernel quantizers may stand.
  """
  expected = {path: leaf.shape for path, leaf in trees.arrays(abstract_params(config)).items()}
  found, problems = {}, []
  allowed = {site.name for site in decoder.model_sites(config)}
  for path, value in trees.walk(params):
    if isinstance(value, dict):
      continue
    parent, _, key = path.rpartition('/')
    if path in expected:
      found[path] = value.shape
      if nodes.is_node(value) and not (isinstance(value, qtensor.QTensor) and key == 'kernel'):
        problems.append(f'{path}: a {type(value).__name__} cannot stand for an array')
    elif key == 'kernel_quantizer' and isinstance(value, quantizers.WeightQuantizer):
      problems += [] if f'{parent}/kernel' in expected else [f'{path}: there is no such linear layer']
    elif key in _SPECIFICATIONS and (
        parent in allowed or parent.removesuffix('/input') + '/kernel' in expected or
        parent.rpartition('/')[2] in _OPERANDS):
      continue
    else:
      problems.append(f'{path}: not in the model')
  problems += [f'{path}: missing' for path in expected if path not in found]
  problems += [f'{path}: shape {tuple(found[path])} instead of {shape}' for path, shape in expected.items()
               if path in found and tuple(found[path]) != shape]
  if problems:
    more = f'; and {len(problems) - 3} more' if len(problems) > 3 else ''
    raise errors.CheckpointError(f'the tree does not fit the model: {"; ".join(problems[:3])}{more}')
