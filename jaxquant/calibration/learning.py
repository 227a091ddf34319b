"""The `learn` schedule: gradient descent on a window of consecutive blocks, against the full-precision stream.

The student reads the quantized stream and runs the window with whatever a method put into its tree (soft clips,
low-rank terms, rotations); the teacher's outputs are those of the full-precision blocks on the full-precision stream.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxquant import errors
from jaxquant.calibration import sites

Subtrees = tuple[Any, ...]


def mean_square(output, target):
  """Mean squared difference over all elements, float32."""
  return jnp.mean(jnp.square(output.astype(jnp.float32) - target.astype(jnp.float32)))


class Learner(NamedTuple):
  """A learning method on the linears of a window. Closes over options, never over arrays; all functions can be traced.

  Attributes:
    prepare: subtrees of the window -> the same with what is to be learned put in.
    trainable: prepared subtrees -> tree of booleans, which leaves learn.
    finish: learned subtrees -> (final subtrees, a {name: record} for each); records hold scalars and arrays.
    optimizer: steps once for every batch.
    epochs: passes over the batches.
    loss: (outputs, targets) of the window's last block -> scalar.
  """

  prepare: Callable[[Subtrees], Subtrees]
  trainable: Callable[[Subtrees], Any]
  finish: Callable[[Subtrees], tuple[Subtrees, tuple[dict, ...]]]
  optimizer: optax.GradientTransformation
  epochs: int
  loss: Callable[[Any, Any], Any] = mean_square


def fit(
    learner: Learner, blocks: tuple[sites.Block, ...], params: Subtrees, inputs: Sequence[Any], targets: Sequence[Any]
) -> tuple[Subtrees, tuple[dict, ...]]:
  """Trains a window. The arrays of `params` are left alone, whatever the steps donate.

  Args:
    learner: the method.
    blocks: of the window, in order.
    params: their subtrees.
    inputs: what enters the first block, batch by batch.
    targets: what should leave the last one.

  Returns:
    (subtrees, records), one of each a block; every record also holds `loss_before` and `loss_after`, means over the
    batches.

  Raises:
    UserError: there are no batches.
    NonFiniteError: the loss is not finite; says when it first was not.
  """
  if not inputs:
    raise errors.UserError('learning needs at least one batch of tokens')
  step, evaluate = _compiled(learner, blocks)
  params = learner.prepare(params)
  learns = learner.trainable(params)
  # Copies, as a step donates both, and an optimizer's state may start as the parameters themselves.
  # With dtypes of their own: that of a weakly typed constant would change with the first step, which compiles another.
  copy = lambda leaf: jnp.array(leaf, leaf.dtype)
  free = jax.tree.map(lambda leaf, yes: copy(leaf) if yes else None, params, learns)
  fixed = jax.tree.map(lambda leaf, yes: None if yes else leaf, params, learns)
  state = jax.tree.map(copy, learner.optimizer.init(free))
  batches = list(zip(inputs, targets, strict=True))
  before = _mean([evaluate(free, fixed, x, target) for x, target in batches], 'before the first step')
  for epoch in range(learner.epochs):
    losses = []
    for x, target in batches:
      free, state, loss = step(free, fixed, state, x, target)
      losses.append(loss)
    _mean(losses, f'in epoch {epoch + 1} of {learner.epochs}')
  after = _mean([evaluate(free, fixed, x, target) for x, target in batches], 'after the last step')
  params, records = learner.finish(_joined(free, fixed))
  records = jax.tree.map(lambda x: x.tolist(), jax.device_get(records))
  losses = {'loss_before': before, 'loss_after': after}
  return params, tuple({name: {**entry, **losses} for name, entry in record.items()} for record in records)


@functools.cache
def _compiled(learner, blocks):
  """Jitted (step, loss), one pair for all windows that share their blocks and a learner."""

  def loss(free, fixed, x, target):
    for block, subtree in zip(blocks, _joined(free, fixed)):
      x = block.forward(subtree, x)
    return learner.loss(x, target)

  @functools.partial(jax.jit, donate_argnums=(0, 2))
  def step(free, fixed, state, x, target):
    value, gradients = jax.value_and_grad(loss)(free, fixed, x, target)
    updates, state = learner.optimizer.update(gradients, state, free)
    return optax.apply_updates(free, updates), state, value

  return step, jax.jit(loss)


def _mean(losses, when):
  """The mean of the losses of all batches; raises `NonFiniteError` saying `when` it is not finite."""
  mean = float(sum(losses) / len(losses))
  if not math.isfinite(mean):
    raise errors.NonFiniteError(f'the loss of learning is {mean} {when}')
  return mean


def _joined(free, fixed):
  return jax.tree.map(lambda a, b: b if a is None else a, free, fixed, is_leaf=lambda leaf: leaf is None)
