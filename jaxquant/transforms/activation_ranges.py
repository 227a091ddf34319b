"""Static activation ranges from calibration: what a model trained without quantizers needs for static inference.

What is observed is the activation as the quantizer will see it: after gathers, shifts and scales at its site.
"""

import functools

import jax.numpy as jnp

from jaxquant import errors
from jaxquant.calibration import statistics
from jaxquant.calibration import sites as sites_lib
from jaxquant.calibration import transform
from jaxquant.numerics import formats
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.transforms import grids

METHODS = tuple(statistics.KINDS)


def activation_ranges(
    claim: transform.Claim, bits: int, *, method: str = 'minmax', percentile: float = 99.99, momentum: float = 0.9,
    align_zero: bool = False, symmetric: bool = False, per_channel: bool = False) -> transform.Transform:
  """The transform that gives every site a static range: one for the whole tensor, or one for each channel.

  Args:
    claim: sites or operands.
    bits: of a code, 2 to 8.
    method: `minmax`, the extrema of all values; `average`, the mean over sequences of each one's extrema;
      `percentile`, cutting an equal share off either end; `token_wise`, cutting it off the extrema of tokens instead of
      all values (the coarse stage of token-wise clipping, arXiv:2209.13325, which tries several shares on the whole
      model); `moving_average` over batches, which depends on their order. What cuts counts in bins of 0.7 %.
    percentile: of values, or of tokens, kept below the upper end, and likewise above the lower one, (50, 100].
    momentum: weight of the past in the moving average, in [0, 1).
    align_zero: see `quantizers.ClipQuantizer`.
    symmetric: the farther end from zero is the value of code 2^(bits-1) - 1, and zero that of code 0, which leaves
      `align_zero` nothing to do.
    per_channel: a range for each feature of each head, for operands only (values of 4 bits in arXiv:2311.05161); by any
      method that takes no percentile.

  Returns:
    A Transform that records `low` and `high` for each site.

  Raises:
    UserError: an unknown method, an argument out of its range, ranges of channels where there can be none; at `init`,
      what `grids.check_inputs` refuses.
  """
  formats.check_bits(bits)
  if not 50 < percentile <= 100:
    raise errors.UserError(f'percentile is {percentile}; either end keeps above 50 and at most 100 percent')
  if not 0 <= momentum < 1:
    raise errors.UserError(f'momentum is {momentum}; the weight of the past is at least 0 and below 1')
  if method not in METHODS:
    raise errors.UserError(f'unknown range calibration {method!r}; there are {", ".join(METHODS)}')
  empty = statistics.KINDS[method]
  cutting = method in ('percentile', 'token_wise')
  if per_channel and cutting:
    raise errors.UserError('percentiles are those of a whole tensor; per_channel goes with other range calibrations')
  if per_channel and symmetric:
    raise errors.UserError('ranges of channels are asymmetric; symmetric goes with one of a whole tensor')
  if per_channel and (read := [site.name for site in claim.sites if site.consumers]):
    raise errors.UserError(
        f'{read[0]}: the linears that read it sum over its channels, so that no integer sum could be scaled by ranges '
        'of channels afterwards; per_channel is for the operands of attention')
  if method == 'moving_average':
    empty = functools.partial(statistics.MovingExtrema.empty, momentum)
  arguments = (percentile,) if cutting else ()

  sites = claim.names

  def init(params, batch):
    grids.check_inputs(claim, params)
    shape = lambda site: batch.activation(sites_lib.ready(site)).shape[2:] if per_channel else ()
    return {site: empty(shape=shape(site)) for site in sites}

  def observe(state, batch):
    return {site: state[site].observed(batch.activation(sites_lib.ready(site))) for site in sites}

  def search(params, state):
    record = {}
    for site in sites:
      low, high = state[site].ends(*arguments)
      quantizer = quantizers.ClipQuantizer(low, high, bits, align_zero).projected()
      low, high = quantizer.low, quantizer.high
      if symmetric:
        largest = jnp.maximum(jnp.abs(low), jnp.abs(high))
        quantizer = quantizers.StepQuantizer(largest / (2 ** (bits - 1) - 1), bits)
        low, high = quantizer.ends()
      record[site] = {'low': low, 'high': high}
      params = trees.put(params, site, {**(trees.get(params, site) or {}), 'quantizer': quantizer})
    return params, record, {}

  return transform.Transform(init, observe, search)
