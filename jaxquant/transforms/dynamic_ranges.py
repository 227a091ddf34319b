"""Dynamic activation ranges: taken from each token when it comes, so that nothing is calibrated."""

from jaxquant.calibration import transform
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.transforms import grids


def dynamic_ranges(claim: transform.Claim, quantizer: quantizers.DynamicQuantizer) -> transform.Transform:
  """The transform that gives every site `quantizer`, behind whatever else stands there.

  Args:
    claim: sites or operands.
    quantizer: of their activations.

  Returns:
    A Transform that records the number of `bits` of each site.

  Raises:
    UserError: at `init`, groups that do not divide the features, and what `grids.check_inputs` refuses.
  """

  def check(params):
    grids.check_inputs(claim, params)
    for site in claim.sites:
      for path in site.consumers[:1]:
        features = trees.get(params, path)['kernel'].shape[-1 if trees.is_table(path) else -2]
        quantize.group_count(features, quantizer.group_size, site.name)

  def search(params):
    for site in claim.names:
      params = trees.put(params, f'{site}/quantizer', quantizer)
    return params, {site: {'bits': quantizer.format.bits} for site in claim.names}, {}

  return transform.without_data(search, check)
