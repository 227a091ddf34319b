"""Outlier Suppression+ (arXiv:2304.09145): channels shifted to their centres, and those that stick out shrunk to one
threshold, which is chosen by the error of the quantized output.

With z_j = (max_t X_tj + min_t X_tj) / 2 and X' = X - z, the scales are s_j(t) = max(1, max_t |X'_tj| / t): one variable
t for all channels, and no channel is ever scaled up.
"""

import functools

import jax.numpy as jnp

from jaxquant.calibration import channels
from jaxquant.calibration import sites
from jaxquant.calibration import transform
from jaxquant.numerics import quantizers
from jaxquant.transforms import folding
from jaxquant.transforms import scale_search

_STRIDE = 5


def outlier_suppression(
    claim: transform.Claim, weight: quantizers.WeightQuantizer, activation, *, shift: bool = True, scale: bool = True,
    candidates: int = 100, tokens: int = 8192) -> transform.Transform:
  """The transform that shifts and scales each site.

  Thresholds run from the largest magnitude of the shifted activation, which scales nothing, down to a hundredth of it
  (the published code ends at constants of its model families), and are judged at the attention's mix for q, k and v, at
  the gated product for gate and up, and at the linear itself elsewhere. Of equal candidates the largest threshold wins.

  Args:
    claim: sites with a producer; where it cannot take up a shift (norms without bias, as in LLaMA), sites are scaled
      only, as published.
    weight: grid of the linears.
    activation: input quantizer of the site. The published code searches static per-tensor settings with the range
      [-t, t], which is what `DynamicQuantizer(per_tensor=True)` takes from activations that were shifted and scaled.
    shift, scale: either part can be left out.
    candidates: thresholds, of which the neighbourhood of the best fifth is tried one by one.
    tokens: sampled for the search, in whole sequences.

  Returns:
    A Transform that records for each site its `threshold` t, the number of channels that were `scaled`, the largest
    `shift` by magnitude, `error`, `error_shifted` of the shift alone and `error_before` of neither.
  """

  def init(params, batch):
    for site in claim.sites:
      folding.check(params, site)
    return {site.name: {
        'extrema': channels.ChannelExtrema.empty(batch.activations[site.name].shape[-1]),
        'sample': scale_search.empty_sample(batch, site.name, tokens)} for site in claim.sites}

  def observe(state, batch):
    return {name: {
        'extrema': entry['extrema'].observed(batch.activations[name]),
        'sample': entry['sample'].observed(batch.activations[name], batch.ids)} for name, entry in state.items()}

  def search(params, state):
    record = {}
    for site in claim.sites:
      extrema, sample = state[site.name]['extrema'], state[site.name]['sample']
      low, high = -folding.tied(-extrema.low, site), folding.tied(extrema.high, site)
      centre = (low + high) / 2 if shift and site.shifts else jnp.zeros_like(low)
      magnitude = jnp.maximum(high - centre, centre - low)
      largest = jnp.maximum(jnp.max(magnitude), jnp.finfo(jnp.float32).tiny)
      scales_of = lambda t: jnp.maximum(1.0, magnitude / t[:, None])
      judge = lambda t, shift: scale_search.judged(
          params, claim.block, site, _scope(site), sample, scales_of(t), shift=shift, weight=weight,
          activation=activation)
      errors = {'error_before': judge(largest[None], None)[0], 'error_shifted': judge(largest[None], centre)[0]}
      threshold, error = largest, errors['error_shifted']
      if scale:
        threshold, error = _least(functools.partial(judge, shift=centre), largest, candidates)
      chosen = scales_of(threshold[None])[0]
      record[site.name] = {
          'threshold': threshold, 'scaled': jnp.sum(chosen > 1), 'shift': jnp.max(jnp.abs(centre)), 'error': error,
          **errors}
      params = folding.fold(params, site, chosen, centre if shift and site.shifts else None)
    return params, record, {}

  return transform.Transform(init, observe, search)


def _least(errors_of, largest, candidates: int):
  """The threshold of least error among k / candidates of the largest, and its error; of equal ones, the larger.

  Every `_STRIDE`th is tried, the largest among them, and then those around the best: the error is a smooth valley with
  small steps where codes flip.
  """
  thresholds = largest * jnp.arange(candidates, 0, -1) / candidates
  coarse = jnp.arange(0, candidates, _STRIDE)
  around = coarse[jnp.argmin(errors_of(thresholds[coarse]))] + jnp.arange(1 - _STRIDE, _STRIDE)
  around = thresholds[jnp.clip(around, 0, candidates - 1)]
  errors = errors_of(around)
  return around[jnp.argmin(errors)], jnp.min(errors)


def _scope(site: sites.Site) -> str:
  return 'inner' if len(site.consumers) > 1 else 'linears'
