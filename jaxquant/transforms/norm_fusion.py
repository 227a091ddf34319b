"""Norm fusion: the gain and bias of a norm multiplied into the linears that read it, so that it puts out plain
normalized values. Rotations need it, and AQAS (arXiv:2311.05161) does it for OPT."""

from typing import Any

import jax.numpy as jnp

from jaxquant import errors
from jaxquant.calibration import transform
from jaxquant.numerics import trees
from jaxquant.transforms import folding


def norm_fusion(claim: transform.Claim) -> transform.Transform:
  """The transform that fuses the norms which produce the claimed sites.

  Args:
    claim: sites whose producer is a norm.

  Returns:
    A Transform that records the `largest` gain that each norm had.
  """

  def check(params: Any) -> None:
    for site in claim.sites:
      folding.check(params, site)
      if 'kernel' in trees.get(params, site.producer):
        raise errors.UserError(f'{site.name}: {site.producer} is a linear layer, not a norm')

  def search(params):
    record = {}
    for site in claim.sites:
      norm = trees.get(params, site.producer)
      record[site.name] = {'largest': jnp.max(jnp.abs(norm['scale']))}
      wide = lambda x: None if x is None else x.astype(jnp.promote_types(x.dtype, jnp.float32))
      params = folding.fold(params, site, wide(norm['scale']), wide(norm.get('bias')))
      # What the fold has divided, zero gains included, by definition.
      plain = {'scale': jnp.ones_like(norm['scale']), 'bias': jnp.zeros_like(norm['scale'])}
      params = trees.put(params, site.producer, {**norm, **{key: plain[key] for key in plain if key in norm}})
    return params, record, {}

  return transform.without_data(search, check)
