"""SmoothQuant (arXiv:2211.10438): activation outliers divided out, and multiplied into the weights that read them."""

from jaxquant import errors
from jaxquant.calibration import transform
from jaxquant.numerics import quantizers
from jaxquant.transforms import scale_search


def smooth_quant(
    claim: transform.Claim, weight: quantizers.WeightQuantizer | None = None, activation=None, *, exponent: float = 0.5,
    search: bool = False, candidates: int = 21, tokens: int = 8192) -> transform.Transform:
  """The transform that folds s_j = max|X_j|^a / max|W_j|^(1 - a) into each site (equation 4).

  The weight's maximum is taken over all linears that read the site, side by side.

  Args:
    claim: sites with a producer; the paper's are the outputs of the norms.
    weight, activation: what quantizes the linears' kernels and the activation in a search; not needed without one.
    exponent: a, in [0, 1]; the paper takes 0.5 for OPT and BLOOM, and more where activations are harder. Sites may
      differ in it: by rules of their own in a step, or by `exponents` of `recipes.Recipe` and of a configuration.
    search: take for each site the exponent, of `candidates` evenly spaced ones from 0 to 1, with which its quantized
      linears come closest, if any beats no scales at all.
    candidates: how many exponents are tried, at least 2.
    tokens: sampled for the search, in whole sequences.

  Returns:
    A Transform that records what `scale_search.fold_powers` does.

  Raises:
    UserError: an option out of its range, and what `scale_search.fold_powers` refuses.
  """
  if not 0 <= exponent <= 1:
    raise errors.UserError(f'smooth_quant: exponent is {exponent}, not between 0 and 1')
  if search:
    scale_search.check_options('smooth_quant', candidates=candidates, tokens=tokens)
    grid = [i / (candidates - 1) for i in range(candidates)]
    exponents = [(0.0, 0.0), *((a, 1 - a) for a in grid)]
  else:
    exponents = [(exponent, 1 - exponent)]
  return scale_search.fold_powers(
      claim, exponents, 'largest', centre=False, scope=lambda site: 'linears', weight=weight, activation=activation,
      tokens=tokens)
