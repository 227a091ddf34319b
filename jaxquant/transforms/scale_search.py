"""The search that the scaling methods share: many candidate folds of one site, each judged as it would be quantized.

A candidate is just another tree: the site's input specification shifts, scales and quantizes the activation, the
consumers' kernels are scaled and rounded. The error of all candidates is one `lax.map`, hence one compilation.

SmoothQuant, AWQ and AQAS differ in four choices only, the arguments of `fold_powers`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxquant import errors
from jaxquant.calibration import channels
from jaxquant.calibration import samples
from jaxquant.calibration import sites
from jaxquant.calibration import transform
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.transforms import folding

_LEAST = 1e-5  # of a magnitude that something is divided by, as in SmoothQuant's code


def empty_sample(batch: transform.Batch, site: str, tokens: int) -> samples.SequenceSample:
  """A sample for the activation of `site`: as many whole sequences as hold `tokens`, at least one.

  A hundred candidates cost less than a pass over the calibration set that way, whatever the length of its sequences.
  """
  activation = batch.activation(site)
  return samples.SequenceSample.empty(max(1, tokens // activation.shape[1]), activation.shape[1:], activation.dtype)


def check_options(method: str, *, tokens: int, candidates: int = 2) -> None:
  """Raises `UserError` for a search by `method` of fewer than two candidates, or on no tokens."""
  if candidates < 2:
    raise errors.UserError(f'{method}: candidates is {candidates}; a search compares at least 2')
  if tokens < 1:
    raise errors.UserError(f'{method}: tokens is {tokens}; a search needs at least 1')


def candidate(
    params: Any, site: sites.Site, scale: Any, shift: Any, weight: quantizers.WeightQuantizer | None,
    activation: Any) -> Any:
  """The block with the site folded at run time and quantized: what the fold will compute once it is rounded.

  Args:
    params: float tree of the block.
    site: the site.
    scale, shift: float32 [features], or None.
    weight: grid of the consumers; None leaves kernels as they are.
    activation: input quantizer of the site; None leaves the activation as it is.
  """
  entries = {'shift': shift, 'scale': scale, 'quantizer': activation}
  specification = {key: value for key, value in entries.items() if value is not None}
  params = folding.consumed(params, site, scale, shift)
  for path in site.consumers if weight is not None else ():
    kernel = trees.get(params, path)['kernel']
    params = trees.put(params, f'{path}/kernel', weight(kernel))
  return trees.put(params, site.name, specification or None)


def judged(
    params: Any, judge: Callable[..., Any], site: sites.Site, scope: str, sample: samples.SequenceSample, scales: Any,
    *, shifts: Any = None, weight: quantizers.WeightQuantizer | None = None, activation: Any = None):
  """Errors of candidates against the full-precision block.

  Args:
    params: float tree of the block.
    judge, site, scope: where and how outputs are compared, see `sites.Block.judge`.
    sample: activations of the site before its input specification.
    scales: float32 [candidates, features].
    shifts: the same, or None.
    weight, activation: as for `candidate`, the same for all.

  Returns:
    float32 [candidates]: squared differences summed over features, mean over tokens.
  """
  output_of = lambda tree: judge(site.name, scope, tree, sample.filled())
  reference = output_of(trees.put(params, site.name, None)).astype(jnp.float32)

  def error(candidate_fold):
    scale, shift = candidate_fold
    output = output_of(candidate(params, site, scale, shift, weight, activation))
    return sample.mean_square(output.astype(jnp.float32) - reference)

  return jax.lax.map(error, (scales, shifts))


def fold_powers(
    claim: transform.Claim, exponents: Sequence[tuple[float, float]], statistic: str, *, centre: bool,
    scope: Callable[[sites.Site], str], weight: quantizers.WeightQuantizer | None, activation: Any, tokens: int,
) -> transform.Transform:
  """The transform that folds s_j = |X_j|^a / |W_j|^b into each site, with the exponents of least error.

  Args:
    claim: sites with a producer.
    exponents: candidate pairs (a, b); of several, the first must be (0, 0): no scales.
    statistic: what |.| is, over the tokens of a channel and over the outputs of all consumers that read it: one of
      `STATISTICS`.
    centre: whether to make the geometric mean of the largest and the smallest scale of every candidate 1.
    scope: site -> where its candidates are judged.
    weight: grid of the consumers in the search; None leaves them as they are.
    activation: input quantizer of the site in the search; None leaves the activation as it is.
    tokens: sampled for the search, in whole sequences.

  Returns:
    A Transform that records for each site the `exponent` a, the `weight_exponent` b and the `largest` scale; with
    several candidates also `error` and `error_before`, that of no scales.

  Raises:
    UserError: several candidates in a block without a judge; at `init`, what `folding.check` and the grid refuse.
  """
  reduce, kind, read = STATISTICS[statistic]
  searched = len(exponents) > 1
  judge = claim.judge() if searched else None

  def init(params, batch):
    state = {}
    for site in claim.sites:
      folding.check(params, site)
      for path in site.consumers if weight else ():
        weight.check(trees.get(params, path)['kernel'].shape, path)
      state[site.name] = {'magnitude': kind.empty(batch.activation(site.name).shape[-1])}
      if searched:
        state[site.name]['sample'] = empty_sample(batch, site.name, tokens)
    return state

  def observe(state, batch):
    new = {}
    for name, entry in state.items():
      x = batch.activation(name)
      new[name] = {'magnitude': entry['magnitude'].observed(x)}
      if searched:
        new[name]['sample'] = entry['sample'].observed(x, batch.ids)
    return new

  def search(params, state):
    record = {}
    for site in claim.sites:
      activations = folding.tied(read(state[site.name]['magnitude']), site)
      weights = folding.tied(weight_magnitude(params, site, reduce), site)
      scales = powers(activations, weights, exponents)
      if centre:
        scales /= jnp.sqrt(jnp.max(scales, axis=-1, keepdims=True) * jnp.min(scales, axis=-1, keepdims=True))
      best, found = 0, {}
      if searched:
        judgments = judged(params, judge, site, scope(site), state[site.name]['sample'], scales, weight=weight,
                           activation=activation)
        best = jnp.argmin(judgments)
        found = {'error': judgments[best], 'error_before': judgments[0]}
      a, b = jnp.asarray(exponents, jnp.float32)[best]
      record[site.name] = {'exponent': a, 'weight_exponent': b, 'largest': jnp.max(scales[best]), **found}
      params = folding.fold(params, site, scales[best])
    return params, record, {}

  return transform.Transform(init, observe, search)


def weight_magnitude(params: Any, site: sites.Site, reduce=jnp.max):
  """Magnitude of every input channel over all consumers' kernels side by side, float32 [features]."""
  kernels = [jnp.abs(trees.get(params, path)['kernel']) for path in site.consumers]
  return reduce(jnp.concatenate(kernels, axis=-1), axis=-1)


def powers(activation, weight, exponents: Sequence[tuple[float, float]]):
  """activation^a / weight^b for each pair (a, b) of exponents: float32 [candidates, features]."""
  activation, weight = (jnp.maximum(magnitude, _LEAST) for magnitude in (activation, weight))
  a, b = jnp.asarray(exponents, jnp.float32).T[..., None]
  return activation**a / weight**b


# What |.| means: over the weights that read a channel, over its tokens, and how the latter is read.
STATISTICS = {
    'largest': (jnp.max, channels.ChannelExtrema, channels.ChannelExtrema.magnitude),
    'mean': (jnp.mean, channels.ChannelMagnitude, channels.ChannelMagnitude.mean),
}
