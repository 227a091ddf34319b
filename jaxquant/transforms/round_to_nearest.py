"""Round-to-nearest: every weight to the nearest code of its group's min-max grid. Needs no data."""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxquant.calibration import transform
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.transforms import grids


def round_to_nearest(claim: transform.Claim, weight: quantizers.WeightQuantizer | None = None) -> transform.Transform:
  """The transform that rounds kernels.

  Args:
    claim: linears.
    weight: the grid; None: that of each linear's `kernel_quantizer`.

  Returns:
    A Transform that records for each linear the `relative_error`, ||rounded - kernel||^2 / ||kernel||^2, and `zeros`,
    the share of its weights that become zero without being it, which dINT is to lower (arXiv:2311.05161).
  """
  return transform.without_data(
      functools.partial(round_linears, paths=claim.names, weight=weight),
      functools.partial(grids.check, claim, weight=weight))


def round_linears(params: Any, paths: Sequence[str], weight: quantizers.WeightQuantizer | None = None):
  """(params, record, {}) with the kernels at `paths` rounded; arguments and record as for `round_to_nearest`."""
  record = {}
  for path in paths:
    kernel = trees.get(params, path)['kernel']
    rounded = grids.grid(params, path, weight).quantized(kernel)
    kernel = kernel.astype(jnp.float32)  # in 16 bits, a sum of squares may overflow
    values = quantize.dequantize(rounded)
    error = jnp.sum((values - kernel) ** 2)
    record[path] = {
        'relative_error': error / jnp.maximum(jnp.sum(kernel**2), jnp.finfo(jnp.float32).tiny),
        'zeros': jnp.mean((values == 0) & (kernel != 0))}
    params = grids.put_kernel(params, path, rounded)
  return params, record, {}
