"""Allocation of bits: a grid for each linear, so that the sum of their scores is least under a budget of stored bits.

The choice is written into the tree, as each linear's `kernel_quantizer`; round-to-nearest or GPTQ then rounds to it:

  candidates = [quantizers.WeightQuantizer(formats.parse(name), group_size=64) for name in ('int2', 'int4', 'int8')]
  scores = sensitivity.loss_scores(loss, params, batches, [r'layers/.*'], candidates)
  found = allocation.allocate(params, scores, candidates, 4.5, allocation.sharing(model, scores))
  print(found.table())
  rounding = driver.Step('linears', [(r'layers/.*', round_to_nearest.round_to_nearest)], every=False)
  result = driver.run(found.written(params), model, [rounding], [])

With `sensitivity.layer_errors` as a step of the driver, `scores` are what it recorded, and no loss is needed:

  measure = functools.partial(sensitivity.layer_errors, candidates=candidates)
  measured = driver.run(params, model, [driver.Step('linears', [(r'layers/.*', measure)], every=False)], tokens)
  scores = {path: entry['layer_errors']['errors'] for path, entry in measured.decisions.items()}

Bits are those that a QTensor stores, scales and zero points included. Codes of 3 bits take 4, and codes of 5 to 7 bits
take 8 (`formats.IntFormat.storage_bits`), so that these win only where they have the lower score.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxquant import errors
from jaxquant.calibration import sites
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.transforms import grids
from jaxquant.transforms import knapsack


class Choice(NamedTuple):
  """What a linear got.

  Attributes:
    grid: its grid.
    bits: stored bits per weight, scales and zero points included.
    score: of the grid for this linear.
    weights: how many weights the kernel has.
  """

  grid: quantizers.WeightQuantizer
  bits: float
  score: float
  weights: int


class Allocation(NamedTuple):
  """What `allocate` found.

  Attributes:
    choices: {path of a linear: its Choice}, in the order of the scores.
    score: their sum.
    bound: no allocation within the budget has a lower sum, to float64 rounding. Equal to `score` where the allocation
      is proven best.
  """

  choices: dict[str, Choice]
  score: float
  bound: float

  @property
  def bits(self) -> float:
    """Mean stored bits per weight over all linears."""
    weights = sum(choice.weights for choice in self.choices.values())
    return sum(choice.bits * choice.weights for choice in self.choices.values()) / weights

  def written(self, params: Any) -> Any:
    """The tree with the chosen grids as `kernel_quantizer`s, in place of those that were there."""
    for path, choice in self.choices.items():
      params = trees.put(params, f'{path}/kernel_quantizer', choice.grid)
    return params

  def decisions(self) -> dict[str, dict]:
    """The choices as the decisions of a driver's run are: {path: {'allocation': {'grid', 'bits', 'score'}}}."""
    return {
        path: {'allocation': {'grid': grids.name(choice.grid), 'bits': choice.bits, 'score': choice.score}}
        for path, choice in self.choices.items()}

  def table(self) -> str:
    """The choices as lines of text, those of the highest scores first, and a line of totals."""
    ranked = sorted(self.choices.items(), key=lambda item: -item[1].score)
    rows = [(path, grids.name(c.grid), f'{c.bits:.3f}', f'{c.score:.4g}') for path, c in ranked]
    total = (f'{len(rows)} linears', '', f'{self.bits:.3f}', f'{self.score:.4g} (at best {self.bound:.4g})')
    rows = [('linear', 'grid', 'bits', 'score'), *rows, total]
    widths = [max(len(row[k]) for row in rows) for k in range(3)]
    return '\n'.join(
        f'{path:{widths[0]}}  {grid:{widths[1]}}  {bits:>{widths[2]}}  {score}' for path, grid, bits, score in rows)


def allocate(
    params: Any, scores: Mapping[str, Sequence[float]], candidates: Sequence[quantizers.WeightQuantizer], bits: float,
    agree: Iterable[Sequence[str]] = ()) -> Allocation:
  """Chooses one of the candidates for each linear: a multiple-choice knapsack problem, see `knapsack`.

  Args:
    params: tree that holds the linears; its kernels may be abstract.
    scores: {path of a linear: its score on each candidate}. Scores are added, so they should be in one unit for all.
    candidates: the grids.
    bits: the budget, mean stored bits per weight over all linears of `scores`.
    agree: groups of paths that must get the same grid, such as `sharing` gives; none is in two groups.

  Raises:
    UserError: no candidates or linears, scores that are not one finite number for each candidate, a group with a path
      that has no scores or is in another, a budget below the cheapest candidates or not finite, a linear that is
      quantized already, a grid that does not fit its kernel.
  """
  if not candidates or not scores:
    raise errors.UserError(f'no {"linears" if candidates else "candidates"} to allocate bits to')
  for path, values in scores.items():
    if len(values) != len(candidates) or not all(map(math.isfinite, values)):
      raise errors.UserError(
          f'{path}: needs a finite score for each of {len(candidates)} candidates, not {list(values)}')
  costs = {path: [_stored_bits(params, path, candidate) for candidate in candidates] for path in scores}
  weights = {path: math.prod(trees.get(params, path)['kernel'].shape) for path in scores}
  total = sum(weights.values())
  groups = _groups(scores, agree)
  summed = lambda table: [[sum(column) for column in zip(*(table[path] for path in group))] for group in groups]
  group_costs = summed(costs)
  if not math.isfinite(bits):
    raise errors.UserError(f'a budget of {bits} bits per weight is none')
  # A thousandth of a bit makes up for the rounding of a mean, such as that of an earlier allocation.
  budget = min(math.floor(bits * total + 1e-3), sum(map(max, group_costs)))
  if (least := sum(map(min, group_costs))) > budget:
    raise errors.UserError(
        f'a budget of {bits} bits per weight is below {least / total:.4f}, what the cheapest candidates store')
  solution = knapsack.solve(group_costs, summed(scores), budget)
  chosen = {path: index for group, index in zip(groups, solution.choices) for path in group}
  choices = {
      path: Choice(candidates[chosen[path]], costs[path][chosen[path]] / weights[path],
                   float(scores[path][chosen[path]]), weights[path])
      for path in scores}
  return Allocation(choices, solution.score, solution.bound)


def sharing(model: sites.StagedModel, paths: Iterable[str]) -> tuple[tuple[str, ...], ...]:
  """Those of the paths that read the same activation, in groups of two or more: queries, keys and values; gate and up.

  A kernel that computes them side by side, as one matrix, needs one grid for all.
  """
  paths = frozenset(paths)
  joined = [
      tuple(f'{block}/{path}' if block else path for path in site.consumers)
      for block, parts in model.blocks for site in parts.sites]
  found = [tuple(path for path in group if path in paths) for group in joined]
  return tuple(group for group in found if len(group) > 1)


def _stored_bits(params, path, candidate):
  """Bits that the kernel at `path` takes as a QTensor of the grid, an integer."""
  linear = trees.get(params, path)
  if not isinstance(linear, dict) or 'kernel' not in linear:
    raise errors.UserError(f'{path}: has scores, but is no linear of the tree')
  grid = grids.grid(params, path, candidate)
  kernel = jax.eval_shape(grid.quantized, linear['kernel'])
  return round(kernel.bits_per_value * math.prod(kernel.shape))


def _groups(paths, agree):
  """The groups of `agree`, and each other path alone."""
  agree, seen = [tuple(group) for group in agree], set()
  for path in (path for group in agree for path in group):
    if path not in paths:
      raise errors.UserError(f'{path}: is to agree with others, but has no scores')
    if path in seen:
      raise errors.UserError(f'{path}: is in two groups of linears that are to agree')
    seen.add(path)
  return [*agree, *((path,) for path in paths if path not in seen)]
