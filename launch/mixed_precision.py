"""Mixed precision as a configuration asks for it: every linear is scored on each candidate grid, then gets one of them.

The grids are written into the tree, where the methods that round find them.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxquant import errors
from jaxquant.calibration import driver
from jaxquant.calibration import sites
from jaxquant.models import config as model_config
from jaxquant.models import staging
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.training import losses
from jaxquant.training import tasks
from jaxquant.transforms import allocation
from jaxquant.transforms import sensitivity

SCORES = ('layer_errors', 'loss')


@dataclasses.dataclass(frozen=True)
class Budget:
  """What is to be allocated.

  Attributes:
    bits: mean stored bits per weight over the linears of `pattern`.
    candidates: grids to choose from.
    score: `layer_errors` or `loss`, see `transforms.sensitivity`.
    pattern: the linears, a regular expression on the whole path.
  """

  bits: float
  candidates: tuple[quantizers.WeightQuantizer, ...]
  score: str
  pattern: str

  def __post_init__(self):
    if self.score not in SCORES:
      raise errors.UserError(f'config.allocation.score is {self.score!r}; there are {", ".join(SCORES)}')
    if not self.candidates:
      raise errors.UserError('config.allocation.candidates is empty: name the formats to choose from')

  def cheapest(self, params: Any, model: sites.StagedModel) -> Any:
    """The tree with the cheapest candidates, which takes no scores.

    Args:
      params: float tree, which may be abstract.
      model: its blocks.

    Raises:
      UserError: the budget is below them, or a candidate does not fit a kernel.
    """
    scores = {path: (0.0,) * len(self.candidates) for path in trees.matching(self.pattern, trees.linears(params))}
    try:
      return self._allocated(params, model, scores).written(params)
    except errors.UserError as error:
      raise errors.UserError(f'config.allocation: {error}') from None

  def steps(self) -> list[driver.Step]:
    """What has to run behind the folds before `allocate`, so that there is something to score by."""
    measure = functools.partial(sensitivity.layer_errors, candidates=self.candidates)
    return [driver.Step('linears', [(self.pattern, measure)], every=False)] if self.score == 'layer_errors' else []

  def allocate(
      self, folded: driver.Result, model: model_config.TransformerConfig, batches: Sequence[Any],
  ) -> tuple[allocation.Allocation, dict[str, dict]]:
    """Chooses the grids.

    Args:
      folded: what the folds and `steps` left.
      model: the architecture.
      batches: token ids, int32 [sequences, tokens] each.

    Returns:
      (allocation, decisions): the latter are those of `folded`, each score and each choice, as a driver's run has them.
    """
    decisions = folded.decisions
    if self.score == 'loss':
      found = sensitivity.loss_scores(_loss(model), folded.params, batches, [self.pattern], self.candidates)
      decisions = driver.merged(
          decisions, {path: {'loss_scores': {'scores': list(scores)}} for path, scores in found.items()})
    else:
      found = {path: entry['layer_errors']['errors'] for path, entry in decisions.items() if 'layer_errors' in entry}
    chosen = self._allocated(folded.params, staging.staged(model), found)
    return chosen, driver.merged(decisions, chosen.decisions())

  def _allocated(self, params, model, scores):
    return allocation.allocate(params, scores, self.candidates, self.bits, allocation.sharing(model, scores))


def _loss(model):
  """(params, token ids [rows, tokens]) -> what the model was trained to make small, summed over what it predicts."""
  module = staging.make(model)

  def loss(params, tokens):
    inputs, targets, counts = tasks.scored(model, tokens, jnp.ones(tokens.shape, bool))
    return jnp.sum(jnp.where(counts, losses.cross_entropy(module.apply({'params': params}, inputs), targets), 0.0))

  return loss
