"""Sensitivity: what rounding each linear alone, to each of several grids, would cost. Changes no weight.

Two scores, both of rounding to nearest, with D = rounded kernel - kernel:

  layer_errors   trace(D^T H D) / trace(W^T H W), the squared error of the linear's output over its square; H is the
                 second moment of its input. Needs no gradient, runs block by block; says nothing of what the output is
                 for, and counts every linear alike.
  loss_scores    sum_ij F_ij D_ij^2 / 2, the second-order change of the model's loss with the diagonal of the empirical
                 Fisher in place of the Hessian (Optimal Brain Damage, LeCun et al., 1990, with the Fisher as in
                 SqueezeLLM, arXiv:2306.07629). Comparable between linears; needs a backward pass of the whole model.

`allocation` chooses a grid for each linear by either.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxquant import errors
from jaxquant.calibration import channels
from jaxquant.calibration import rules
from jaxquant.calibration import transform
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.transforms import grids
from jaxquant.transforms import moments


def layer_errors(claim: transform.Claim, candidates: Sequence[quantizers.WeightQuantizer]) -> transform.Transform:
  """The transform that records the output error of each linear on each grid.

  Args:
    claim: linears.
    candidates: the grids.

  Returns:
    A Transform that leaves the params as they are and records for each linear the `errors`, float32 [candidates].

  Raises:
    UserError: no candidates, a linear that reads no site; at `init`, what `grids.check` and `moments.empty` refuse.
  """
  _check_any(candidates)
  claim.by_site()

  def init(params, batch):
    for candidate in candidates:
      grids.check(claim, params, candidate)
    return moments.empty(claim, params, batch)

  def search(params, state):
    record = {}
    for point, linears in moments.points(claim, params).items():
      moment = state[point].mean()
      for path in linears:
        kernel = trees.get(params, path)['kernel'].astype(jnp.float32)
        total = channels.output_error(moment, kernel)
        lost = [channels.output_error(moment, _difference(kernel, candidate)) for candidate in candidates]
        record[path] = {'errors': moments.relative(jnp.stack(lost), total)}
    return params, record, {}

  return transform.Transform(init, moments.observe, search)


def loss_scores(
    loss: Callable[[Any, Any], Any], params: Any, batches: Iterable[Any], paths: Sequence[str],
    candidates: Sequence[quantizers.WeightQuantizer]) -> dict[str, tuple[float, ...]]:
  """Expected change of the loss when one linear alone is rounded, to second order.

  What is computed for a linear is sum_ij F_ij D_ij^2 / 2, F_ij the mean over sequences of the squared derivative of the
  sequence's loss with respect to W_ij at the unrounded kernels. F is the diagonal of the empirical Fisher, which is
  that of the Hessian in expectation where `loss` is a negative log likelihood, summed over the tokens of a sequence,
  and the model is right about the data. The score then is in the unit of the loss, nats per sequence. A loss that is
  the mean over T tokens gives 1 / T^2 of it instead of 1 / T: the same order of linears and grids, in another unit.

  Left out are the first-order term, whose mean is zero at a minimum of the loss, and products of different weights,
  whose rounding errors are taken for uncorrelated.

  Args:
    loss: (params, batch) -> scalar, for a batch of a single sequence.
    params: the whole tree. `kernel_quantizer`s of the scored linears do not take part.
    batches: trees of arrays [sequences, ...], of equal shapes, or else the gradient is compiled for each shape.
    paths: of the linears to score, as they are or as regular expressions on the whole path.
    candidates: the grids.

  Returns:
    {path: score on each of the candidates}. Beside the params, memory holds a float32 array of the size of each scored
    kernel, and what one backward pass of a single sequence needs: sequences are taken one after the other, also where
    a batch is spread over devices.

  Raises:
    UserError: no candidates or batches, a path that matches none that is left, a linear that is quantized already, a
      grid that does not fit its kernel, gradients that are all zero.
    NonFiniteError: a gradient is not finite, by path.
  """
  _check_any(candidates)
  owners = rules.assign([(path, True) for path in paths], trees.linears(params), 'linears to score', every=False)
  for path in owners:
    params = trees.put(params, f'{path}/kernel_quantizer', None)
    for candidate in candidates:
      grids.grid(params, path, candidate)
  kernels = {path: trees.get(params, path)['kernel'] for path in owners}
  squares = squared_gradients(loss, params, batches, tuple(owners))
  found = {
      path: [_second_order(kernel, squares[path], candidate) for candidate in candidates]
      for path, kernel in kernels.items()}
  return {path: tuple(map(float, scores)) for path, scores in jax.device_get(found).items()}


def squared_gradients(
    loss: Callable[[Any, Any], Any], params: Any, batches: Iterable[Any], paths: Sequence[str]) -> dict[str, Any]:
  """Mean over sequences of the squared gradient of a sequence's loss: {path: float32, shaped as its kernel}.

  Arguments and errors as for `loss_scores`; `paths` are those of float kernels.
  """

  @functools.partial(jax.jit, donate_argnums=0)
  def accumulated(total, params, batch):
    kernels = {path: trees.get(params, path)['kernel'] for path in paths}

    def of_sequence(total, sequence):
      alone = jax.tree.map(lambda x: x[None], sequence)
      gradient = jax.grad(lambda kernels: loss(_with_kernels(params, kernels), alone))(kernels)
      return jax.tree.map(lambda t, g: t + jnp.square(g.astype(jnp.float32)), total, gradient), None

    return jax.lax.scan(of_sequence, total, batch)[0]

  total = {path: jnp.zeros(trees.get(params, path)['kernel'].shape) for path in paths}
  sequences = 0
  for batch in batches:
    total = accumulated(total, params, batch)
    sequences += len(jax.tree.leaves(batch)[0])
  if not sequences:
    raise errors.UserError('the squared gradients of a loss need at least one batch')
  if not any(jax.device_get(jnp.any(square)) for square in total.values()):
    raise errors.UserError('the gradients of the loss are all zero: nothing in the batches is predicted')
  try:
    trees.check_finite(total)
  except errors.NonFiniteError as error:
    raise errors.NonFiniteError(f'gradients of the loss: {error}') from None
  return {path: t / sequences for path, t in total.items()}


def _difference(kernel, candidate):
  """Rounded kernel - kernel, float32."""
  return candidate.rounded(kernel) - kernel.astype(jnp.float32)


@functools.partial(jax.jit, static_argnames='candidate')
def _second_order(kernel, squares, candidate):
  return jnp.sum(squares * jnp.square(_difference(kernel, candidate))) / 2


def _with_kernels(params, kernels):
  for path, kernel in kernels.items():
    params = trees.put(params, f'{path}/kernel', kernel)
  return params


def _check_any(candidates):
  if not candidates:
    raise errors.UserError('no candidates: sensitivity is that to rounding to a grid, so name at least one')
