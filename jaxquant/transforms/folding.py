"""Folding: a site's channels shifted and scaled, the inverse folded into what computes them and what reads them.

With x' = (x - shift) / scale, a linear y = x W + b is y = x' (scale W) + (b + shift W), so the full-precision function
stays what it was (SmoothQuant, arXiv:2211.10438, equation 3; Outlier Suppression+, arXiv:2304.09145, equations 3 to 5).
The producer, a norm or a linear, puts out x' when its gain and bias, or its columns and bias, are changed to match.
"""

from typing import Any

import jax.numpy as jnp

from jaxquant import errors
from jaxquant.calibration import sites
from jaxquant.numerics import nodes
from jaxquant.numerics import trees


def check(params: Any, site: sites.Site) -> None:
  """Raises `UserError` if nothing can be folded at `site`: no such producer, a table, codes, a stale range."""
  if site.producer is None:
    raise errors.UserError(f'{site.name}: there is no norm or linear before it that could take up a scale')
  if not site.consumers:
    raise errors.UserError(f'{site.name}: there is no linear that reads it and could take a scale back')
  for path in (site.producer, *site.consumers):
    if not isinstance(entry := trees.get(params, path), dict):
      raise errors.UserError(f'{site.name}: there is no norm or linear {path}')
    if trees.is_table(path):
      raise errors.UserError(
          f'{site.name}: {path} is looked up row by row, too, so that a scale of its features would change that')
    if nodes.is_node(entry.get('kernel')):
      raise errors.UserError(f'{path}: holds integer codes already; scales are folded into float kernels')
  for path in (*site.through, site.name, *(f'{consumer}/input' for consumer in site.consumers)):
    specification = trees.get(params, path) or {}
    stale = [entry for entry, value in specification.items() if entry != 'quantizer' or hasattr(value, 'ends')]
    if stale:
      raise errors.UserError(f'{path}: holds a {stale[0]} already, which a fold would make wrong; fold first')


def fold(params: Any, site: sites.Site, scale: Any = None, shift: Any = None) -> Any:
  """The block with x' = (x - shift) / scale at `site`, the same function in full precision.

  Args:
    params: the block's tree, with a float kernel in the producer and in every consumer. Arithmetic is float32 at least,
      and what comes of it is rounded once, to the dtype that was there; a new bias gets that of its kernel or gain.
    site: a site with a producer.
    scale: float32 [features] of the site, positive, equal wherever channels repeat one of the producer's; None for 1.
    shift: the same, of any sign, for a site that `shifts`; None for 0.

  Returns:
    The tree. Consumers get a bias where a shift needs one; a residual branch that reads the producer's output too gets
    `scale` and `shift` at `site.residual`, which undo the fold there.
  """
  params = consumed(params, site, scale, shift)
  if site.residual is not None:
    params = trees.put(params, site.residual, _restoring(trees.get(params, site.residual) or {}, scale, shift))
  produced = lambda values: None if values is None else tie(values, site)
  producer = trees.get(params, site.producer)
  return trees.put(params, site.producer, _producing(producer, produced(scale), produced(shift)))


def consumed(params: Any, site: sites.Site, scale: Any = None, shift: Any = None) -> Any:
  """The block whose linears at `site` read x' = (x - shift) / scale in place of x; arguments as for `fold`."""
  for path in site.consumers:
    layer = trees.get(params, path)
    wide = _wide(layer)
    if shift is not None:
      wide['bias'] = wide.get('bias', 0.0) + jnp.matmul(shift, wide['kernel'], precision='highest')
    if scale is not None:
      wide['kernel'] = wide['kernel'] * scale[:, None]
    params = trees.put(params, path, _narrowed(layer, wide, 'kernel'))
  return params


def tie(values, site: sites.Site, reduce=lambda repeated, axis: repeated[:, 0]):
  """The producer's channels out of the site's [features]: `reduce` over those that repeat one channel."""
  return reduce(values.reshape(-1, site.repeats, site.run), axis=1).reshape(-1)


def spread(values, site: sites.Site):
  """The site's channels [features] out of the producer's: each run repeated as the site reads it."""
  return jnp.repeat(values.reshape(-1, 1, site.run), site.repeats, axis=1).reshape(-1)


def tied(values, site: sites.Site):
  """`values` [features] with those that repeat one channel of the producer replaced by the largest of them."""
  return values if site.repeats == 1 else spread(tie(values, site, jnp.max), site)


def _producing(layer: dict, scale, shift) -> dict:
  """A norm (gain `scale`, perhaps `bias`) or a linear that puts out (y - shift) / scale."""
  gain, wide = 'kernel' if 'kernel' in layer else 'scale', _wide(layer)
  if shift is not None:
    wide['bias'] = wide.get('bias', 0.0) - shift
  if scale is not None:
    wide.update({key: wide[key] / scale for key in (gain, 'bias') if key in wide})
  return _narrowed(layer, wide, gain)


def _wide(layer: dict) -> dict:
  """What a fold may change of a norm or a linear, in float32 or wider."""
  found = {key: layer[key] for key in ('kernel', 'scale', 'bias') if key in layer}
  return {key: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) for key, leaf in found.items()}


def _narrowed(layer: dict, wide: dict, gain: str) -> dict:
  """The layer with the entries of `wide` in its own dtypes, new ones in that of its `gain`."""
  return {**layer, **{key: leaf.astype(layer.get(key, layer[gain]).dtype) for key, leaf in wide.items()}}


def _restoring(specification: dict, scale, shift) -> dict:
  """The entry that a residual branch applies, x scale + shift, behind another fold."""
  scale = jnp.ones_like(shift) if scale is None else scale
  shift = jnp.zeros_like(scale) if shift is None else shift
  old_scale, old_shift = specification.get('scale', 1.0), specification.get('shift', 0.0)
  return {'scale': scale * old_scale, 'shift': shift * old_scale + old_shift}
