"""GPTQ (arXiv:2210.17323): kernels rounded input by input, those to come making up for the error so far."""

import jax.numpy as jnp

from jaxquant import errors
from jaxquant.calibration import channels
from jaxquant.calibration import transform
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.transforms import error_feedback
from jaxquant.transforms import grids
from jaxquant.transforms import moments


def gptq(
    claim: transform.Claim, weight: quantizers.WeightQuantizer | None = None, *, damping: float = 0.01,
    act_order: bool = False, static_groups: bool = False, block_size: int = 128) -> transform.Transform:
  """The transform that rounds kernels with error feedback. All linears that read the same share one factorization.

  The paper takes inputs from the quantized blocks before, and from the quantized sites before in a block: a step with
  `stream='quantized', schedule='sequential'`.

  Args:
    claim: linears.
    weight: the grid; None: that of each linear's `kernel_quantizer`. Groups of inputs read their scales from the
      kernel as it is when their turn comes; with scales per input channel (AdaDim, arXiv:2309.15531), an input reads
      them from its row as it is when it is rounded.
    damping: added to the diagonal of the second moment, as a fraction of its mean over inputs that are not dead;
      tenfold as long as the Cholesky factor is not finite, `error_feedback.MOST_INCREASES` times at most.
    act_order: inputs of large second moment have their turn first, while many others can still make up for them.
      Groups of inputs must be static then: the turns of a group are scattered, so that there is no time at which its
      scale could be read.
    static_groups: groups of inputs read their scales from the kernel before any rounding. Does not concern scales per
      input channel.
    block_size: inputs whose errors are passed on to the later ones at once; changes float32 rounding only.

  Returns:
    A Transform that records for each linear the relative output `error`, trace(D^T H D) / trace(W^T H W) with D the
    change of the kernel W and H the undamped second moment; `error_rtn`, the same of rounding to nearest on the same
    grid; `damping_increases`; `dead`, how many inputs were always zero (their weights become zero if the grid has it);
    and `tokens`, how many were observed. Of fewer tokens than inputs it warns.

  Raises:
    UserError: a linear that reads no site, a `damping` or `block_size` that is not positive; at `init`, what
      `grids.check` and `moments.empty` refuse, one scale for a kernel, and `act_order` or two-level scales with groups
      of inputs that are not static.
    NonFiniteError: at `rewrite`, no damping gave a finite factor.
  """
  claim.by_site()
  if damping <= 0 or block_size < 1:
    raise errors.UserError(f'GPTQ needs a positive damping and block size, not {damping} and {block_size}')

  def init(params, batch):
    grids.check(claim, params, weight)
    for path in claim.names:
      grid = grids.grid(params, path, weight)
      if act_order and not static_groups and grid.axis == -2 and grid.group_size is not None:
        raise errors.UserError(
            f'{path}: act_order scatters the turns of a group of {grid.group_size} inputs, so that its scale cannot be '
            'read when its turn comes; ask for static_groups too')
      grids.refuse_per_tensor(path, grid, 'GPTQ')
      if grid.two_level and not static_groups:
        raise errors.UserError(
            f'{path}: two-level scales of an output are multiples of one number, which no group can read when its turn '
            'comes, since those behind it change still; ask for static_groups too')
    return moments.empty(claim, params, batch)

  def search(params, state):
    record = {}
    for point, linears in moments.points(claim, params).items():
      moment = state[point].mean()
      factor = error_feedback.factorize(moment, damping=damping, act_order=act_order)
      for grid, paths in _by_grid(params, linears, weight):
        kernels = [trees.get(params, path)['kernel'] for path in paths]
        rounded = error_feedback.solve(
            kernels, factor, grid, static_groups=static_groups, block_size=block_size)
        for path, kernel, result in zip(paths, kernels, rounded):
          params = grids.put_kernel(params, path, result)
          record[path] = {
              'error': _relative_error(moment, kernel, result),
              'error_rtn': _relative_error(moment, kernel, grid.quantized(kernel)),
              'damping_increases': factor.increases, 'dead': jnp.sum(~factor.live),
              'tokens': state[point].count()}
    return params, record, {}

  return transform.Transform(init, moments.observe, search, _refuse_failures, warn=moments.warn)


def _by_grid(params, paths, weight):
  """(grid, paths) pairs; the kernels of a pair can be solved side by side as one, in a single loop over inputs."""
  found = {}
  for path in paths:
    grid = grids.grid(params, path, weight)
    alone = grid.axis == -1 and grid.group_size is None  # a scale of all its outputs, but of no other's
    found.setdefault((grid, path if alone else None), []).append(path)
  return [(grid, members) for (grid, _), members in found.items()]


def _relative_error(moment, kernel, rounded):
  difference = quantize.dequantize(rounded) - kernel
  return moments.relative(channels.output_error(moment, difference), channels.output_error(moment, kernel))


def _refuse_failures(params, record, decisions):
  del decisions
  most = error_feedback.MOST_INCREASES
  if failed := [path for path, entry in record.items() if entry['damping_increases'] > most]:
    raise errors.NonFiniteError(
        f'{failed[0]}: no damping gives the second moment of its input a finite factor, not even {most} times tenfold')
  return params
