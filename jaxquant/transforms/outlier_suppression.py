"""Outlier Suppression+ (arXiv:2304.09145): channels shifted to their centres, and those that stick out shrunk to one
threshold, which is chosen by the error of the quantized output.

With z_j = (max_t X_tj + min_t X_tj) / 2 and X' = X - z, the scales are s_j(t) = max(1, max_t |X'_tj| / t): one variable
t for all channels, and no channel is ever scaled up.
"""

import jax.numpy as jnp

from jaxquant import errors
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
  The published code searches with quantizers on already; here that holds for the blocks before, if the step reads the
  quantized stream, while a block's sites are searched behind its other parts in floats.

  Args:
    claim: sites with a producer; where it cannot take up a shift (norms without bias, as in LLaMA), sites are scaled
      only, as published.
    weight: grid of the linears.
    activation: input quantizer of the site. The published code searches static per-tensor settings with the range
      [-t, t], which is what `DynamicQuantizer(per_tensor=True)` takes from activations that were shifted and scaled.
    shift, scale: either part can be left out.
    candidates: thresholds, at least 2, of which the neighbourhood of the best fifth is tried one by one.
    tokens: sampled for the search, in whole sequences.

  Returns:
    A Transform that records for each site its `threshold` t, the number of channels that were `scaled`, the largest
    `shift` by magnitude, `error`, `error_shifted` of the shift alone and `error_before` of neither.

  Raises:
    UserError: an option out of its range, a block without a judge; at `init`, a site where nothing is left to do and
      what `folding.check` refuses.
  """
  scale_search.check_options('outlier_suppression', candidates=candidates, tokens=tokens)

  judge = claim.judge()

  def init(params, batch):
    for site in claim.sites:
      folding.check(params, site)
      if not scale and not (shift and site.shifts):
        raise errors.UserError(f'outlier_suppression: {site.name} takes no shift, and scales are left out, so that '
                               'nothing would change')
    return {site.name: {
        'extrema': channels.ChannelExtrema.empty(batch.activation(site.name).shape[-1]),
        'sample': scale_search.empty_sample(batch, site.name, tokens)} for site in claim.sites}

  def observe(state, batch):
    return {name: {
        'extrema': entry['extrema'].observed(batch.activation(name)),
        'sample': entry['sample'].observed(batch.activation(name), batch.ids)} for name, entry in state.items()}

  def search(params, state):
    record = {}
    for site in claim.sites:
      extrema, sample = state[site.name]['extrema'], state[site.name]['sample']
      low, high = -folding.tied(-extrema.low, site), folding.tied(extrema.high, site)
      centred = shift and site.shifts
      centre = (low + high) / 2 if centred else jnp.zeros_like(low)
      magnitude = jnp.maximum(high - centre, centre - low)
      largest = jnp.max(magnitude)
      scales_of = lambda t: jnp.maximum(1.0, magnitude / t[:, None])

      def errors_of(t, weights=1.0):
        """Errors of thresholds [n], the shift multiplied by `weights` [n]."""
        shifts = jnp.broadcast_to(weights, t.shape)[:, None] * centre if centred else None
        return scale_search.judged(
            params, judge, site, _scope(site), sample, scales_of(t), shifts=shifts, weight=weight,
            activation=activation)

      thresholds = largest * (jnp.arange(candidates, 0, -1) / candidates) if scale else largest[None]
      # Where nothing is ever active there is nothing to scale, and no threshold may be zero.
      largest, thresholds = (jnp.maximum(t, jnp.finfo(jnp.float32).tiny) for t in (largest, thresholds))
      # Neither shift nor scale, the shift alone, and every `_STRIDE`th threshold, as one compiled search.
      coarse = jnp.concatenate([largest[None], thresholds[::_STRIDE]])
      found = errors_of(coarse, (jnp.arange(len(coarse)) > 0).astype(jnp.float32))
      threshold, error = largest, found[1]
      if scale:
        # The error is a smooth valley with small steps where codes flip: the rest is sought around the best.
        around = _STRIDE * jnp.argmin(found[1:]) + jnp.arange(1 - _STRIDE, _STRIDE)
        around = thresholds[jnp.clip(around, 0, candidates - 1)]
        judged = errors_of(around)
        # Of equal thresholds the largest.
        threshold, error = around[jnp.argmin(judged)], jnp.min(judged)
      chosen = scales_of(threshold[None])[0]
      record[site.name] = {
          'threshold': threshold, 'scaled': jnp.sum(chosen > 1), 'shift': jnp.max(jnp.abs(centre)), 'error': error,
          'error_shifted': found[1], 'error_before': found[0]}
      params = folding.fold(params, site, chosen, centre if centred else None)
    return params, record, {}

  return transform.Transform(init, observe, search)


def _scope(site: sites.Site) -> str:
  return 'inner' if len(site.consumers) > 1 else 'linears'
