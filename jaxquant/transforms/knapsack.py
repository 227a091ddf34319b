"""The multiple-choice knapsack problem, on plain arrays: one option of each item, least total score within a budget.

The relaxation, in which an item may take a mixture of two options, is solved exactly by a greedy walk along the convex
hulls of all items, steepest fall of score per cost first (Sinha and Zoltners, 1979). It bounds from below what any
completion of a partial choice can reach. Dynamic programming over the items then keeps those partial choices only that
no other beats in both cost and score, and whose bound is below the best complete choice found so far.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxquant import errors


class Solution(NamedTuple):
  """A choice for every item.

  Attributes:
    choices: index of the option of each item.
    score: of the choices, summed in float64.
    bound: no choice within the budget has a lower score, to float64 rounding; equal to `score` where it is proven best.
  """

  choices: tuple[int, ...]
  score: float
  bound: float


def solve(
    costs: Sequence[Sequence[int]], scores: Sequence[Sequence[float]], budget: int, *, most_states: int = 2**14
) -> Solution:
  """Chooses an option of each item.

  Args:
    costs: non-negative integers of each item's options; items may differ in how many options they have.
    scores: finite numbers of each item's options.
    budget: the largest sum of costs.
    most_states: partial choices that are kept at a time. Where there are more, those of the highest bounds are given
      up, and the solution's `bound` is no higher than theirs.

  Raises:
    UserError: the cheapest options together exceed the budget.
  """
  items = [_undominated(cost, score) for cost, score in zip(costs, scores, strict=True)]
  if (least := sum(int(cost[0]) for cost, _, _ in items)) > budget:
    raise errors.UserError(f'a budget of {budget} is below {least}, the cost of the cheapest options')
  relaxed = _Relaxed(items)
  best = _greedy(items, relaxed, budget)
  best_score, given_up = _total(items, best), np.inf

  spent, score, history = np.zeros(1, np.int64), np.zeros(1), []
  for i, (item_cost, item_score, _) in enumerate(items):
    parent, option = np.divmod(np.arange(len(spent) * len(item_cost)), len(item_cost))
    spent, score = spent[parent] + item_cost[option], score[parent] + item_score[option]
    bound = score + relaxed.rest(i + 1, budget - spent)  # infinite where the rest cannot be paid for
    keep = np.flatnonzero(bound < best_score)
    keep = keep[np.lexsort((score[keep], spent[keep]))]
    before = np.concatenate([[np.inf], np.minimum.accumulate(score[keep])[:-1]]) if len(keep) else np.zeros(0)
    keep = keep[score[keep] < before]
    if len(keep) > most_states:
      order = np.argsort(bound[keep], kind='stable')
      given_up = min(given_up, bound[keep[order[most_states]]])
      keep = keep[order[:most_states]]
    spent, score = spent[keep], score[keep]
    history.append((parent[keep].astype(np.int32), option[keep].astype(np.int32)))

  if len(score):
    state, found = int(np.argmin(score)), []
    for parent, option in reversed(history):
      found.append(int(option[state]))
      state = parent[state]
    best = found[::-1]
    best_score = _total(items, best)
  choices = tuple(int(indices[option]) for (_, _, indices), option in zip(items, best))
  return Solution(choices, float(best_score), float(min(best_score, given_up)))


def _undominated(cost, score):
  """(costs ascending, scores descending, indices) of the options that no other beats or equals in both."""
  cost, score = np.asarray(cost, np.int64), np.asarray(score, np.float64)
  order = np.lexsort((score, cost))
  keep, lowest = [], np.inf
  for i in order:
    if score[i] < lowest:
      keep.append(i)
      lowest = score[i]
  return cost[keep], score[keep], np.asarray(keep)


def _hull(cost, score):
  """Options on the lower convex hull, as positions; the first and last are always among them."""
  hull = []
  for k in range(len(cost)):
    while len(hull) > 1:
      a, b = hull[-2:]
      if (score[b] - score[a]) * (cost[k] - cost[a]) < (score[k] - score[a]) * (cost[b] - cost[a]):
        break
      hull.pop()
    hull.append(k)
  return hull


class _Relaxed:
  """The relaxation of the items from any one on, as a function of the budget that is left for them.

  Attributes:
    steps: (item, position of the option that it leads to) along the hulls of all items, steepest fall per cost first.
  """

  def __init__(self, items):
    edges = [
        (i, b, cost[b] - cost[a], score[b] - score[a])
        for i, (cost, score, _) in enumerate(items) for a, b in zip(_hull(cost, score), _hull(cost, score)[1:])]
    edges.sort(key=lambda edge: edge[3] / edge[2])
    self.steps = [(i, b) for i, b, _, _ in edges]
    owner, width, fall = (np.asarray([edge[k] for edge in edges]) for k in (0, 2, 3))
    self._curves = []
    for i in range(len(items) + 1):
      mine = owner >= i
      least = sum(int(cost[0]) for cost, _, _ in items[i:])
      highest = sum(float(score[0]) for _, score, _ in items[i:])
      sums = lambda steps: np.concatenate([[0], np.cumsum(steps[mine])])
      self._curves.append((least + sums(width), highest + sums(fall)))

  def rest(self, first, left):
    """Least relaxed score of the items from `first` on for budgets `left`; infinite where there is none."""
    cost, score = self._curves[first]
    return np.where(left < cost[0], np.inf, np.interp(left, cost, score))


def _greedy(items, relaxed, budget):
  """Positions of options within the budget: each item goes along its hull until a step no longer fits."""
  chosen, stuck = [0] * len(items), set()
  left = budget - sum(int(cost[0]) for cost, _, _ in items)
  for i, option in relaxed.steps:
    price = int(items[i][0][option] - items[i][0][chosen[i]])
    if i in stuck or price > left:
      stuck.add(i)
      continue
    chosen[i], left = option, left - price
  return chosen


def _total(items, chosen):
  return sum(float(score[option]) for (_, score, _), option in zip(items, chosen))
