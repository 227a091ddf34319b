"""Rounding with error feedback: the solver of GPTQ (arXiv:2210.17323, algorithm 1) on plain arrays.

For a kernel W [in, out] and H, the second moment of its input, the output error is trace((Q - W)^T H (Q - W)), which
is separate for every output. Once input j is rounded, the best change of the inputs after it follows from the inverse
of H restricted to these. With H^-1 = U^T U, U upper triangular, all those inverses are known at once (section 3.3):
the error e = (w_j - q_j) / U_jj of row j moves every later row k by -e U_jk.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxquant.numerics import packing
from jaxquant.numerics import qtensor
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers

MOST_INCREASES = 6


class Factor(NamedTuple):
  """What all kernels that read the same input share.

  Attributes:
    upper: float32 [in, in], upper triangular U: U^T U is the inverse of the damped second moment up to a factor,
      inputs in the order of their turns.
    order: int32 [in], which input has the i-th turn; None: they take turns as they come.
    live: bool [in], which inputs are ever other than zero.
    increases: int32, tenfold increases of the damping; MOST_INCREASES + 1 if `upper` is not finite even so.
  """

  upper: Any
  order: Any
  live: Any
  increases: Any


def factorize(moment, *, damping: float = 0.01, act_order: bool = False) -> Factor:
  """The factor of a second moment.

  The Cholesky factor of H with its inputs in reverse order, reversed back, is an upper triangular R with H = R R^T,
  hence U = R^-1: one triangular inverse, and never H^-1 itself, whose rounding errors could leave it indefinite.

  Args:
    moment: float32 [in, in].
    damping: added to the diagonal, as a fraction of its mean over live inputs; tenfold until the factor is finite.
    act_order: inputs of large second moment have their turn first.
  """
  size, diagonal = moment.shape[0], jnp.diagonal(moment)
  live = diagonal != 0
  mean = jnp.sum(jnp.abs(diagonal)) / jnp.maximum(jnp.sum(live), 1)
  # In units of the mean, so that the size of the activations does not count. Magnitudes, as the sign must stay.
  normal = moment / jnp.where(mean == 0, 1.0, mean) + jnp.diag(jnp.where(live, 0.0, 1.0))
  order = jnp.argsort(-diagonal, stable=True) if act_order else None
  if order is not None:
    normal = normal[order][:, order]
  finite = lambda lower: jnp.all(jnp.isfinite(jnp.diagonal(lower)))

  def attempt(state):
    increases = state[0] + 1
    damped = normal[::-1, ::-1] + damping * 10.0**increases * jnp.eye(size)
    return increases, jax.lax.linalg.cholesky(damped, symmetrize_input=False)

  increases, lower = jax.lax.while_loop(
      lambda state: ~finite(state[1]) & (state[0] < MOST_INCREASES), attempt,
      (jnp.int32(-1), jnp.full((size, size), jnp.nan)))
  inverse = jax.lax.linalg.triangular_solve(lower, jnp.eye(size), left_side=True, lower=True)
  return Factor(inverse[::-1, ::-1], order, live, jnp.where(finite(lower), increases, MOST_INCREASES + 1))


def solve(
    kernels: Sequence[Any], factor: Factor, weight: quantizers.WeightQuantizer, *, static_groups: bool = False,
    block_size: int = 128) -> list[qtensor.QTensor]:
  """Rounds kernels that read the same input, side by side as if they were one.

  Args:
    kernels: float [in, out] each; a single one if the grid has one scale for all outputs of an input.
    factor: of their input.
    weight: the grid of all. A scale of a group of inputs is read from the kernel as it is when the group's turn comes;
      a scale of an input (axis -1) from its row as it is when that is rounded.
    static_groups: read the scales of groups of inputs from the kernel before any rounding instead; two-level scales
      have to be.
    block_size: inputs whose errors are passed on to the later ones at once; changes float32 rounding only.

  Returns:
    The kernels as codes, with the very scales that the codes were chosen for. Dead inputs have weights of zero, or the
    nearest to it on a grid without zero.

  Raises:
    ValueError: two-level scales of groups that are not static.
  """
  if weight.two_level and not static_groups:
    raise ValueError('two-level scales are those of all groups at once, which have to be static')
  kernel = jnp.concatenate([kernel.astype(jnp.float32) for kernel in kernels], axis=-1)
  kernel = jnp.where(factor.live[:, None], kernel, 0.0)
  (inputs, outputs), fmt, axis = kernel.shape, weight.format, weight.axis
  whole = _rounded(kernel, factor, weight, static_groups, block_size)
  results, start = [], 0
  for width in (kernel.shape[-1] for kernel in kernels):
    # Along outputs, scales are as many as codes, or as groups.
    ends = lambda a: (start * a.shape[-1] // outputs, (start + width) * a.shape[-1] // outputs)
    codes, scale, zero_point = (None if a is None else a[:, slice(*ends(a))] for a in whole)
    size = inputs if axis == -2 else width
    results.append(qtensor.QTensor(packing.pack(codes, fmt, axis), scale, zero_point, fmt, axis, size))
    start += width
  return results


def _rounded(kernel, factor, weight, static_groups, block_size):
  """(codes, scale, zero point) of a kernel, dead inputs zero: codes [in, out], the others shaped as in a QTensor.

  Loops over runs of inputs (a group whose scale is read when its turn comes, or else all inputs), over the blocks of a
  run, and over the rows of a block. Zeros fill up a run's last block; no other row learns of their errors.
  """
  fmt, (inputs, outputs) = weight.format, kernel.shape
  by_row = weight.axis == -1
  fixed = not by_row and (static_groups or weight.group_size is None)
  run = inputs if by_row or fixed else weight.group_size
  runs, blocks = inputs // run, -(-run // block_size)
  rows = -(-run // blocks)
  fill = lambda x, axis, value=0: _filled(x, axis, runs, blocks * rows, value)
  part = jax.lax.dynamic_slice_in_dim
  of_group = lambda x: quantize.affine(*quantize.group_range(x, axis=-2, with_zero=fmt.with_zero), fmt)

  fixed_scales = weight.scales(kernel) if fixed else None
  groups = jnp.arange(inputs) // ((weight.group_size if fixed else None) or inputs)
  if factor.order is not None:
    kernel, groups = kernel[factor.order], groups[factor.order]
  kernel, groups = fill(kernel, -2), fill(groups, -1)
  upper, pivots = fill(fill(factor.upper, -1), -2), fill(jnp.diagonal(factor.upper), -1, 1)

  def round_row(scales, errors, row):
    """Rounds the i-th row of a block; `errors` [rows, out] are the block's, zero from that row on."""
    i, values, column, pivot, group = row
    # One sum over the rows before, instead of an update of all rows behind: less is written.
    values = (values - jnp.sum(column[:, None] * errors, axis=0))[None]
    if by_row:
      scales = weight.scales(values)
    elif scales[0].shape[0] > 1:
      scales = jax.tree.map(lambda a: part(a, group, 1), scales)
    scale, zero_point = jax.tree.map(lambda a: quantize.spread(a, -1, outputs), scales)
    codes = quantize.encode(values, scale, zero_point, fmt)
    error = (values - quantize.decode(codes, scale, zero_point, fmt)) / pivot
    errors = jax.lax.dynamic_update_slice_in_dim(errors, error, i, 0)
    return errors, (codes, scales if by_row else None)

  def round_block(scales, kernel, start):
    across = part(upper, start, rows)
    within = part(across, start, rows, 1)
    values = part(kernel, start, rows)
    turns = jnp.arange(rows), values, within.T, part(pivots, start, rows), part(groups, start, rows)
    errors, results = jax.lax.scan(functools.partial(round_row, scales), jnp.zeros_like(values), turns)
    return kernel - jnp.matmul(across.T, errors, precision=jax.lax.Precision.HIGHEST), results

  def round_run(kernel, start):
    scales = None if by_row else fixed_scales if fixed else of_group(part(kernel, start, run))
    starts = start + rows * jnp.arange(blocks)
    kernel, (codes, scales_by_row) = jax.lax.scan(functools.partial(round_block, scales), kernel, starts)
    return kernel, (codes, scales_by_row, None if fixed else scales)

  codes, scales_by_row, scales_by_run = jax.lax.scan(round_run, kernel, blocks * rows * jnp.arange(runs))[1]

  def rows_in_order(x):
    x = x.reshape(runs, blocks * rows, x.shape[-1])[:, :run].reshape(inputs, x.shape[-1])
    return x if factor.order is None else x[jnp.argsort(factor.order)]

  if by_row:
    scales = jax.tree.map(rows_in_order, scales_by_row)
  else:
    scales = fixed_scales or jax.tree.map(lambda a: a[:, 0], scales_by_run)
  return rows_in_order(codes), *scales


def _filled(x, axis, runs, size, value):
  """`x` with every one of the `runs` along `axis` (negative) filled up to `size` elements with `value`."""
  x = quantize.split_groups(x, axis, runs)
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, size - x.shape[axis])
  x = jnp.pad(x, widths, constant_values=value)
  axis += x.ndim
  return x.reshape(*x.shape[: axis - 1], runs * size, *x.shape[axis + 1 :])
