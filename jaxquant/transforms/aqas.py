"""AQAS (arXiv:2311.05161, section 3.1): scales judged with weights and activations quantized together.

The paper describes the objective and that maxima represent channels better than means (its table 8); how s depends on
the variable of the grid is not printed. Here s_j = max|X_j|^a / max|W_j|^(1 - a), centred, which is our reading.
Behind it come the clip search of AWQ (`clip_search`) and GPTQ, as in the paper's tables.

The paper fuses the affine part of OPT's norms into the linears that follow, so that the quantizer sees the normalized
tensor, and leaves LLaMA's norms as they are: `norm_fusion`, a step before this one, does the former.
"""

from jaxquant.calibration import transform
from jaxquant.numerics import quantizers
from jaxquant.transforms import scale_search


def aqas(
    claim: transform.Claim, weight: quantizers.WeightQuantizer, activation, *, candidates: int = 21,
    attention: bool = True, tokens: int = 8192) -> transform.Transform:
  """The transform that folds into each site the scales with which its linears, quantized on both sides, come closest.

  Args:
    claim: sites with a producer.
    weight: grid of the linears; the paper's is 4 bits, asymmetric, one scale per output channel.
    activation: input quantizer of the site; the paper's is 8 bits, asymmetric, per token.
    candidates: values of a, at least 2, evenly spaced from 0 to 1; no scales at all is a candidate too.
    attention: judge q, k and v (a site that `opens_attention`) by the mix that the attention makes of them, as the
      paper does, and not one by one.
    tokens: sampled for the search, in whole sequences.

  Returns:
    A Transform that records what `scale_search.fold_powers` does.

  Raises:
    UserError: an option out of its range, and what `scale_search.fold_powers` refuses.
  """
  scale_search.check_options('aqas', candidates=candidates, tokens=tokens)
  grid = [i / (candidates - 1) for i in range(candidates)]
  exponents = [(0.0, 0.0), *((a, 1 - a) for a in grid)]
  scope = lambda site: 'inner' if attention and site.opens_attention else 'linears'
  return scale_search.fold_powers(
      claim, exponents, 'largest', centre=True, scope=scope, weight=weight, activation=activation,
      tokens=tokens)
