"""Static activation ranges from calibration: what a model trained without quantizers needs for static inference.

What is observed is the activation as the quantizer will see it: after gathers, shifts and scales at its site.
"""

import functools

from jaxquant import errors
from jaxquant.calibration import statistics
from jaxquant.calibration import sites as sites_lib
from jaxquant.calibration import transform
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees

METHODS = tuple(statistics.KINDS)


def activation_ranges(
    claim: transform.Claim, bits: int, *, method: str = 'minmax', percentile: float = 99.99, momentum: float = 0.9,
    align_zero: bool = False) -> transform.Transform:
  """The transform that gives every site a static range, one for the whole tensor.

  Args:
    claim: sites.
    bits: of a code.
    method: `minmax`, the extrema of all values; `average`, the mean over sequences of each one's extrema;
      `percentile`, cutting an equal share off either end; `moving_average` over batches, which depends on their order.
    percentile: of values kept below the upper end, and likewise above the lower one, in percent.
    momentum: of the moving average.
    align_zero: see `quantizers.ClipQuantizer`.

  Returns:
    A Transform that records `low` and `high` for each site.
  """
  if method not in METHODS:
    raise errors.UserError(f'unknown range calibration {method!r}; there are {", ".join(METHODS)}')
  empty = statistics.KINDS[method]
  if method == 'moving_average':
    empty = functools.partial(statistics.MovingExtrema.empty, momentum)
  arguments = (percentile,) if method == 'percentile' else ()

  sites = claim.names

  def init(params, batch):
    del batch
    if taken := [site for site in sites if 'quantizer' in (trees.get(params, site) or {})]:
      raise errors.UserError(f'{taken[0]} has a quantizer already; its range would be calibrated on what that puts out')
    return {site: empty() for site in sites}

  def observe(state, batch):
    return {site: state[site].observed(batch.activations[sites_lib.ready(site)]) for site in sites}

  def search(params, state):
    record = {}
    for site in sites:
      low, high = state[site].ends(*arguments)
      quantizer = quantizers.ClipQuantizer(low, high, bits, align_zero).projected()
      record[site] = {'low': quantizer.low, 'high': quantizer.high}
      params = trees.put(params, site, {**(trees.get(params, site) or {}), 'quantizer': quantizer})
    return params, record, {}

  return transform.Transform(init, observe, search)
