"""AWQ (arXiv:2306.00978): input channels that matter scaled up before rounding, as far as the block's output gains.

The published code continues with a clip search of every linear but q and k: `clip_search`, a step behind this one that
claims the others.
"""

from jaxquant.calibration import transform
from jaxquant.numerics import quantizers
from jaxquant.transforms import scale_search


def awq(
    claim: transform.Claim, weight: quantizers.WeightQuantizer, *, candidates: int = 20, two_exponents: bool = False,
    activation=None, tokens: int = 8192) -> transform.Transform:
  """The transform that folds s_j = (mean |X_j|)^a into each site, a on a grid over [0, 1).

  Every candidate is centred (the geometric mean of its largest and smallest scale is 1) and judged at the output of the
  module that the site opens, with all linears that read the site rounded; a = 0 is plain rounding.

  Args:
    claim: sites with a producer.
    weight: grid of the linears; the paper's is asymmetric, 4 or 3 bits, in groups of 128 inputs.
    candidates: values of a: 0, 1 / candidates, ...; at least 2.
    two_exponents: the paper's first version, s_j = (mean |X_j|)^a / (mean |W_j|)^b with both on the grid, 1 included.
    activation: input quantizer of the site in the search; None, as published, leaves the activation as it is.
    tokens: sampled for the search, in whole sequences.

  Returns:
    A Transform that records what `scale_search.fold_powers` does.

  Raises:
    UserError: an option out of its range, and what `scale_search.fold_powers` refuses.
  """
  scale_search.check_options('awq', candidates=candidates, tokens=tokens)
  grid = [i / candidates for i in range(candidates + 1)]
  exponents = [(a, b) for a in grid for b in grid] if two_exponents else [(a, 0.0) for a in grid[:-1]]
  return scale_search.fold_powers(
      claim, exponents, 'mean', centre=True, scope=lambda site: 'module', weight=weight, activation=activation,
      tokens=tokens)
