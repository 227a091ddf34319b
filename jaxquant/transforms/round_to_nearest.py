"""Round-to-nearest: every weight to the nearest code of its group's min-max grid. Needs no data."""

import jax.numpy as jnp

from jaxquant.calibration import transform
from jaxquant.numerics import formats
from jaxquant.numerics import nodes
from jaxquant.numerics import quantize
from jaxquant.numerics import trees
from jaxquant import errors


def round_to_nearest(
    linears: tuple[str, ...], fmt: formats.IntFormat, *, group_size: int | None = None, axis: int = -2
) -> transform.Transform:
  """The transform that rounds the kernels of `linears`.

  Args:
    linears: paths, relative to the block.
    fmt: format of the codes.
    group_size: weights along `axis` that share a scale; None: one scale per channel of the other axis.
    axis: -2, groups along the inputs (a scale per output channel and group), or -1.

  Returns:
    A Transform that records for each linear the `relative_error`, ||rounded - kernel||^2 / ||kernel||^2.
  """

  def init(params):
    for path in linears:
      kernel = trees.get(params, path)['kernel']
      if nodes.is_node(kernel):
        raise errors.UserError(f'{path}: already quantized to {kernel.format.name}')
      quantize.group_count(kernel.shape[axis], group_size, path)
    return {}

  def search(params, state):
    del state
    record = {}
    for path in linears:
      layer = trees.get(params, path)
      rounded = quantize.quantize(layer['kernel'], fmt, axis=axis, group_size=group_size)
      error = jnp.sum((quantize.dequantize(rounded) - layer['kernel']) ** 2)
      record[path] = {'relative_error': error / jnp.maximum(jnp.sum(layer['kernel'] ** 2), jnp.finfo(jnp.float32).tiny)}
      layer = {key: value for key, value in layer.items() if key != 'kernel_quantizer'}
      params = trees.put(params, path, {**layer, 'kernel': rounded})
    return params, record, {}

  return transform.Transform(init, lambda state, batch: state, search)
