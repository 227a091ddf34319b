"""Clip search (AWQ, arXiv:2306.00978): a narrower weight range wherever that lowers the quantized output error."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxquant import errors
from jaxquant.calibration import transform
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.transforms import grids
from jaxquant.transforms import moments

ENDS = ('magnitude', 'range')


def clip_search(
    claim: transform.Claim, weight: quantizers.WeightQuantizer | None = None, *, steps: int = 20, least: float = 0.5,
    ends: str = 'magnitude') -> transform.Transform:
  """The transform that clamps kernels, which stay floats: what rounds them afterwards finds the narrower ranges.

  Every output and group of inputs has a clamp of its own, among the ratios 1, 1 - 1/steps, ... that exceed `least`.
  The error that it minimizes is that of the group's share in the output, (x_g (Q_g - W_g))^2, in the mean over the
  tokens: with H_g, the block of the second moment between the inputs of the group, exactly D_g^T H_g D_g. With scales
  per input channel it is every input and group of outputs, and the share in these h_jj sum_n D_jn^2.

  Two-level scales of a group depend on the base that all groups of its output share: ratios are compared with all
  groups clamped alike, so that rounding leaves an error a little above the minimized one.

  AWQ leaves query and key projections as they are, since their errors meet in a product: claim the others.

  Args:
    claim: linears.
    weight: the grid; None: that of each linear's `kernel_quantizer`, which stays in the tree.
    steps: the finest change of a clamp, as a fraction of the range.
    least: no clamp is as narrow as this fraction, in [0, 1).
    ends: what a ratio shrinks: `magnitude`, the largest magnitude of the group, to which both signs are clamped (AWQ);
      `range`, the group's lower and upper end together, which differ only on an asymmetric grid.

  Returns:
    A Transform that records for each linear `clipped`, the mean of the chosen ratios; `error_clipped`, the minimized
    errors summed and divided by those of a kernel of zeros; `error_unclipped`, the same with all ratios 1; and
    `tokens`, how many were observed. Of fewer tokens than a group has inputs it warns, as GPTQ does.

  Raises:
    UserError: a linear that reads no site, an argument out of its range; at `init`, what `grids.check` and
      `moments.empty` refuse, and one scale for a kernel.
  """
  claim.by_site()
  if ends not in ENDS:
    raise errors.UserError(f'unknown ends {ends!r} of a clip search; there are {" and ".join(ENDS)}')
  if steps < 1 or not 0 <= least < 1:
    raise errors.UserError(f'a clip search needs a positive number of steps and least in [0, 1), not {steps}, {least}')
  # A hair above `least`, so that a ratio equal to it in exact arithmetic is out whatever float arithmetic makes of it.
  ratios = tuple(1 - i / steps for i in range(steps) if 1 - i / steps > least + 1e-9)

  def init(params, batch):
    grids.check(claim, params, weight)
    for path in claim.names:
      grids.refuse_per_tensor(path, grids.grid(params, path, weight), 'the clip search')
    return moments.empty(claim, params, batch)

  def find(params, state):
    record = {}
    for point, linears in moments.points(claim, params).items():
      moment = state[point].mean()
      for path in linears:
        kernel = trees.get(params, path)['kernel']
        clamped, found = search(kernel, moment, grids.grid(params, path, weight), ratios, ends)
        record[path] = {**found, 'tokens': state[point].count()}
        params = trees.put(params, f'{path}/kernel', clamped)
    return params, record, {}

  def warn(params, record):
    def inputs(path):
      grid = grids.grid(params, path, weight)
      return grid.group_size if grid.axis == -2 else 1

    return moments.warn(params, record, inputs)

  return transform.Transform(init, moments.observe, find, warn=warn)


def search(
    kernel, moment, weight: quantizers.WeightQuantizer, ratios: Sequence[float], ends: str = 'magnitude'
) -> tuple[Any, dict]:
  """Clamps a kernel.

  Args:
    kernel: float [in, out].
    moment: second moment of its input, float32 [in, in].
    weight: the grid that it will be rounded to.
    ratios: of the clamps to try; of equally good ones the first is taken.
    ends: see `clip_search`.

  Returns:
    (kernel like the given one, record of its errors and ratios as for `clip_search`).
  """
  values = kernel.astype(jnp.float32)
  axis = weight.axis
  low, high = quantize.group_range(values, axis=axis, group_size=weight.group_size)
  if ends == 'magnitude' or weight.format.symmetric:
    high = jnp.maximum(-low, high)
    low = -high
  groups = low.shape[axis]
  wide = lambda per_group: quantize.spread(per_group, axis, values.shape[axis])
  # In the kernel's dtype, as what rounds it finds it: where both ends are alike, asymmetric zero points lie on a tie.
  clamped = lambda ratio: jnp.clip(values, wide(low * ratio), wide(high * ratio)).astype(kernel.dtype)
  errors_of = functools.partial(_errors_of_inputs if axis == -2 else _errors_of_outputs, moment, groups)

  tried = jnp.asarray(ratios, jnp.float32)
  found = jax.lax.map(lambda ratio: errors_of(weight.rounded(clamped(ratio)) - values), tried)
  best = jnp.argmin(found, axis=0)
  chosen, total = tried[best], jnp.sum(errors_of(values))
  record = {
      'clipped': jnp.mean(chosen), 'error_clipped': moments.relative(jnp.sum(jnp.min(found, axis=0)), total),
      'error_unclipped': moments.relative(jnp.sum(found[0]), total)}
  return clamped(chosen), record


def _errors_of_inputs(moment, groups: int, difference):
  """Mean squared share of every group of inputs in every output, [groups, out]."""
  within = jnp.diagonal(moment.reshape(groups, len(moment) // groups, groups, -1), axis1=0, axis2=2)
  within = jnp.moveaxis(within, -1, 0)  # [groups, size, size]
  difference = quantize.split_groups(difference, -2, groups)
  product = jnp.matmul(within, difference, precision=jax.lax.Precision.HIGHEST)
  return jnp.sum(difference * product, axis=-2)


def _errors_of_outputs(moment, groups: int, difference):
  """Mean squared share of every input in every group of outputs, summed over the outputs, [in, groups]."""
  squares = jnp.sum(jnp.square(quantize.split_groups(difference, -1, groups)), axis=-1)
  return jnp.diagonal(moment)[:, None] * squares
