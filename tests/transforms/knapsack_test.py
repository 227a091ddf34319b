"""The multiple-choice knapsack: the optimum of small problems, its bound, and problems of the size of networks."""

import itertools

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from jaxquant import errors
from jaxquant.transforms import knapsack


def _small(seed):
  """(costs, scores, budget): up to five items of up to four options, dominated and equally dear ones among them."""
  rng = np.random.default_rng(seed)
  sizes = rng.integers(1, 5, rng.integers(1, 6))
  costs = [rng.integers(0, 20, size).tolist() for size in sizes]
  scores = [rng.normal(size=size).tolist() for size in sizes]
  return costs, scores, int(rng.integers(sum(map(min, costs)), sum(map(max, costs)) + 1))


def _network(layers):
  """(costs, scores) of linears of 4096 features on grids of 2, 4 and 8 bits, of very different sensitivity."""
  rng = np.random.default_rng(0)
  costs, scores = [], []
  for weights in [4096 * 4096, 4096 * 1024, 4096 * 1024, 4096 * 4096, *[4096 * 14336] * 3] * layers:
    sensitivity = weights * np.exp(1.5 * rng.normal())
    costs.append([weights * bits + 32 * 4096 for bits in (2, 4, 8)])
    scores.append(sensitivity * np.exp(0.1 * rng.normal(size=3)) / 4.0 ** np.asarray((2, 4, 8)))
  return costs, scores


def _sum(table, choices):
  return sum(row[choice] for row, choice in zip(table, choices))


class KnapsackTest(parameterized.TestCase):

  @parameterized.parameters(*range(40))
  def test_finds_the_optimum_of_small_problems_and_proves_it(self, seed):
    costs, scores, budget = _small(seed)
    every = itertools.product(*(range(len(cost)) for cost in costs))
    want = min(_sum(scores, choices) for choices in every if _sum(costs, choices) <= budget)
    found = knapsack.solve(costs, scores, budget)
    self.assertAlmostEqual(found.score, want, places=12)
    self.assertEqual((found.score, found.bound), (_sum(scores, found.choices), found.score))
    self.assertLessEqual(_sum(costs, found.choices), budget)

  @parameterized.parameters(2.1, 3.0, 4.0, 6.1)
  def test_a_network_of_hundreds_of_linears_is_solved_to_optimality(self, bits):
    costs, scores = _network(32)
    budget = int(bits * sum(cost[1] - cost[0] for cost in costs) / 2)
    found = knapsack.solve(costs, scores, budget)
    self.assertEqual(found.bound, found.score)
    self.assertBetween(_sum(costs, found.choices), 0.999 * budget, budget)

  def test_with_few_states_the_bound_is_still_one(self):
    costs, scores = _network(32)
    budget = sum(cost[1] for cost in costs)
    best = knapsack.solve(costs, scores, budget).score
    hasty = knapsack.solve(costs, scores, budget, most_states=1)
    self.assertLessEqual(hasty.bound, best)
    self.assertBetween(hasty.score, best, hasty.bound * 1.01)
    self.assertLess(hasty.bound, hasty.score)

  def test_without_a_choice_there_is_nothing_to_decide(self):
    self.assertEqual(knapsack.solve([[3], [4]], [[1.0], [2.0]], 7), knapsack.Solution((0, 0), 3.0, 3.0))

  def test_refuses_a_budget_that_the_cheapest_options_exceed(self):
    with self.assertRaisesRegex(errors.UserError, '^a budget of 6 is below 7, the cost of the cheapest options$'):
      knapsack.solve([[3, 9], [4]], [[1.0, 0.0], [2.0]], 6)


if __name__ == '__main__':
  absltest.main()
