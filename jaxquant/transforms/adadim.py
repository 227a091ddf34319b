"""AdaDim (arXiv:2309.15531): groups along inputs or along outputs, for each linear the one that hurts less.

An outlier channel of the activation meets one row of a kernel [in, out]. Groups that run along inputs smear it over
every output channel's group; groups that run along outputs keep it in its own. The choice is written into the tree, as
the linear's `kernel_quantizer`: round-to-nearest or GPTQ, as a step behind this one, rounds to it.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxquant import errors
from jaxquant.calibration import samples
from jaxquant.calibration import transform
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.transforms import grids
from jaxquant.transforms import scale_search

_AXES = (-2, -1)  # groups along inputs (a scale per output channel) first: it wins ties


def adadim(claim: transform.Claim, weight: quantizers.WeightQuantizer, *, tokens: int = 8192) -> transform.Transform:
  """The transform that chooses the axis along which each kernel's groups run.

  The linears are decided one after the other in the order in which they are computed. Each is judged at the output of
  its module (attention for q, k and v, MLP for gate and up, the linear itself for o and down), rounded alone, against
  the module with all linears decided so far rounded.

  Args:
    claim: linears whose activations stay unquantized: scales per input channel exclude integer products.
    weight: the grid; its own axis does not count, and its group size must divide inputs and outputs alike.
    tokens: sampled for the search, in whole sequences.

  Returns:
    A Transform that records the errors of either axis for each linear, `error_output_channels` (a scale per output
    channel) and `error_input_channels`, and decides the `axis`: 0 or 1.

  Raises:
    UserError: no tokens, two-level scales, which are those of groups of inputs, a linear that reads no site, a block
      without a judge; at `init`, a table, and what `grids.check` refuses on either axis.
  """
  scale_search.check_options('adadim', tokens=tokens)
  if weight.two_level:
    raise errors.UserError('adadim may choose groups of outputs, which have no two-level scales')
  claim.by_site()
  judge, options = claim.judge(), [dataclasses.replace(weight, axis=axis) for axis in _AXES]

  def init(params, batch):
    if tables := [path for path in claim.names if trees.is_table(path)]:
      raise errors.UserError(
          f'{tables[0]}: the head reads this table transposed, so that either axis would be the other; leave it out')
    for option in options:
      grids.check(claim, params, option)
    return {site: scale_search.empty_sample(batch, site, tokens) for site in claim.by_site()}

  def observe(state, batch):
    return {site: sample.observed(batch.activation(site), batch.ids) for site, sample in state.items()}

  def search(params, state):
    record, decisions, decided = {}, {}, params
    for site, linears in claim.by_site().items():
      for path in linears:
        kernel = trees.get(params, path)['kernel']
        candidates = jnp.stack([option(kernel) for option in options])
        found = _errors(judge, site, path, decided, state[site], candidates)
        axis = jnp.argmin(found)
        record[path] = dict(zip(('error_output_channels', 'error_input_channels'), found))
        decisions[path] = {'axis': axis}
        decided = trees.put(decided, f'{path}/kernel', candidates[axis])
    return params, record, decisions

  def rewrite(params, record, decisions):
    del record
    for path, decision in decisions.items():
      params = trees.put(params, f'{path}/kernel_quantizer', options[decision['axis']])
    return params

  return transform.Transform(init, observe, search, rewrite)


def _errors(judge, site, path, params, sample: samples.SequenceSample, candidates):
  """Errors of the module with each of the candidates as the kernel at `path`: float32 [candidates]."""
  output = lambda tree: judge(site, 'module', tree, sample.filled()).astype(jnp.float32)
  reference = output(params)
  return jax.lax.map(
      lambda kernel: sample.mean_square(output(trees.put(params, f'{path}/kernel', kernel)) - reference), candidates)
