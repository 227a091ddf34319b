"""One training step: loss with regularizers, gradients over microbatches, optimizer, projected ranges."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxquant.layers import tap
from jaxquant.models import config as model_config
from jaxquant.models import staging
from jaxquant.numerics import trees
from jaxquant.training import losses
from jaxquant.training import optimizer as optimizers
from jaxquant.training import qat
from jaxquant.training import regularizers
from jaxquant.training import tasks


class TrainState(NamedTuple):
  """What a step reads and writes: parameters, optimizer state, number of steps done (int32)."""

  params: Any
  optimizer: Any
  step: Any


class Objective(NamedTuple):
  """The loss: cross entropy of what the model predicts (training.tasks), plus either regularizer.

  Attributes:
    model: the model.
    output_kurtosis, weight_kurtosis: the regularizers, or None.
    weight_start: training step from which kernel quantizers round, in the same program as before it.
  """

  model: model_config.TransformerConfig
  output_kurtosis: regularizers.OutputKurtosis | None = None
  weight_kurtosis: regularizers.WeightKurtosis | None = None
  weight_start: int = 1

  def at(self, step: int) -> 'Objective':
    """The loss of the step-th training step, counted from 1."""
    due = self.output_kurtosis and step % self.output_kurtosis.every == 0
    return self._replace(output_kurtosis=self.output_kurtosis if due else None)

  def rounds(self, step: int) -> bool:
    """Whether kernel quantizers round in the step-th training step."""
    return step >= self.weight_start

  def used(self, params, step: int):
    """The part of a tree that the loss of the step-th training step applies."""
    return params if self.rounds(step) else trees.without(params, 'kernel_quantizer')

  def __call__(self, params, tokens, batch_tokens: int, step=0):
    """Loss and its parts.

    Args:
      params: the tree.
      tokens: int32 [rows, length + 1].
      batch_tokens: tokens predicted in the whole global batch, of which `tokens` may be one microbatch.
      step: int32 scalar, steps done; an encoder's hidden tokens follow from it.

    Returns:
      (loss, metrics): float32 scalars, means over the rows.
    """
    taps = (self.output_kurtosis.tap(),) if self.output_kurtosis else ()
    model = staging.make(self.model, taps=taps)
    applied = params if self.weight_start == 1 else qat.rounded_if(step + 1 >= self.weight_start, params)
    inputs, targets, weights = tasks.predictions(self.model, tokens, step)
    logits, recorded = model.apply({'params': applied}, inputs, mutable=[tap.COLLECTION] if taps else [])
    loss = jnp.mean(losses.cross_entropy(logits, targets) * weights)
    metrics = {'cross_entropy': loss}
    if self.output_kurtosis:
      statistics = list(tap.by_point(recorded[tap.COLLECTION]).values())
      penalty, metrics['kurtosis'] = self.output_kurtosis.penalty(statistics, batch_tokens)
      loss += penalty
    if self.weight_kurtosis:
      penalty, metrics['weight_kurtosis'] = self.weight_kurtosis.penalty(params)
      loss += penalty
    return loss, {'loss': loss, **metrics}


def initial_state(params, tx: optax.GradientTransformation) -> TrainState:
  """The state before the first step."""
  return TrainState(params, tx.init(params), jnp.zeros((), jnp.int32))


def train_step(state: TrainState, tokens, *, objective: Objective, tx, microbatches: int = 1):
  """One optimizer step on a global batch.

  Args:
    state: the state, donated when jitted by the trainer.
    tokens: int32 [batch, length + 1].
    objective: the loss.
    tx: the optimizer.
    microbatches: gradients are averaged over this many equal parts of the batch, one at a time.

  Returns:
    (state, metrics): float32 scalars `loss`, `cross_entropy`, `gradient_norm` (kernels, gains and biases) and the
    regularizers' statistics.
  """
  batch_tokens = tokens.shape[0] * (tokens.shape[1] - 1)
  gradient = jax.value_and_grad(objective, has_aux=True)

  def accumulate(total, part):
    (_, metrics), gradients = gradient(state.params, part, batch_tokens, state.step)
    return jax.tree.map(jnp.add, total, (gradients, metrics)), None

  if microbatches == 1:
    (_, metrics), gradients = gradient(state.params, tokens, batch_tokens, state.step)
  else:
    # Row r of microbatch m is row r * microbatches + m of the batch, so that every device holds a part of each.
    parts = jnp.moveaxis(tokens.reshape(-1, microbatches, tokens.shape[1]), 1, 0)
    (gradients, metrics), _ = jax.lax.scan(accumulate, _zeros(gradient, state.params, parts[0], batch_tokens), parts)
    gradients, metrics = jax.tree.map(lambda x: x / microbatches, (gradients, metrics))
  updates, optimizer = tx.update(gradients, state.optimizer, state.params)
  params = qat.project(optax.apply_updates(state.params, updates))
  kernels = [g for g, label in zip(jax.tree.leaves(gradients), jax.tree.leaves(optimizers.labels(gradients)))
             if label == 'weights']
  metrics['gradient_norm'] = optax.tree.norm(kernels)
  return TrainState(params, optimizer, state.step + 1), metrics


def _zeros(gradient, params, part, batch_tokens):
  """Zeros shaped as the gradients and metrics of one microbatch."""
  (_, metrics), gradients = jax.eval_shape(lambda: gradient(params, part, batch_tokens))
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (gradients, metrics))
