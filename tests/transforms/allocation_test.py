"""Allocation of bits: the least sum of scores within the budget, what it brings a network, and what is refused."""

import functools
import itertools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.calibration import driver
from jaxquant.models import staging
from jaxquant.models import validate
from jaxquant.numerics import formats
from jaxquant.numerics import qtensor
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.transforms import allocation
from jaxquant.transforms import round_to_nearest
from jaxquant.transforms import sensitivity
from tests import networks

_INT2, _INT4, _INT8 = _UNIFORM = tuple(quantizers.WeightQuantizer(formats.IntFormat(bits)) for bits in (2, 4, 8))
_GRIDS = (*_UNIFORM, quantizers.WeightQuantizer(formats.parse('dint4'), group_size=8),
          quantizers.WeightQuantizer(formats.parse('int3'), axis=-1))
_SHAPES = {'a/q': (16, 8), 'a/k': (16, 8), 'a/v': (16, 16), 'b': (32, 24), 'c': (24, 16)}
_CONFIG = networks.config('llama', layers=2)
_MODEL = staging.staged(_CONFIG)
_ROUND = driver.Step('linears', [('layers/.*', round_to_nearest.round_to_nearest)], every=False)
_SENSITIVE = 'layers/1/attention/o'


def _tree():
  """Linears of several shapes, abstract."""
  tree = {}
  for path, shape in _SHAPES.items():
    tree = trees.put(tree, f'{path}/kernel', jax.ShapeDtypeStruct(shape, jnp.float32))
  return tree


def _random_scores(seed):
  rng = np.random.default_rng(seed)
  return {path: tuple(map(float, rng.exponential(size=len(_GRIDS)))) for path in _SHAPES}


def _stored(path, grid):
  kernel = jax.eval_shape(grid.quantized, jax.ShapeDtypeStruct(_SHAPES[path], jnp.float32))
  return sum(8 * a.size * a.dtype.itemsize for a in jax.tree.leaves(kernel))


def _best(scores, bits, agree=()):
  """Least sum of scores over all combinations of grids within the budget."""
  budget, best = bits * sum(np.prod(shape) for shape in _SHAPES.values()), np.inf
  costs = {path: [_stored(path, grid) for grid in _GRIDS] for path in _SHAPES}
  for combination in itertools.product(range(len(_GRIDS)), repeat=len(_SHAPES)):
    chosen = dict(zip(_SHAPES, combination))
    if sum(costs[path][k] for path, k in chosen.items()) <= budget:
      if all(len({chosen[path] for path in group}) == 1 for group in agree):
        best = min(best, sum(scores[path][k] for path, k in chosen.items()))
  return best


@functools.cache
def _network():
  """A network of two layers, one of whose linears needs more bits than the others.

  A channel of the values is small and is read by large weights, which widen the grid of every output of that linear.
  """
  params = networks.params('llama', 2)
  value = 'layers/1/attention/v/kernel'
  params = trees.put(params, value, trees.get(params, value).at[:, 0].mul(1 / 40))
  readers = jnp.asarray([0, 4])  # the first channel of both heads that read the first head of the values
  return trees.put(params, f'{_SENSITIVE}/kernel', trees.get(params, f'{_SENSITIVE}/kernel').at[readers].mul(40.0))


@functools.cache
def _scores(method):
  """Scores of the linears in the network's layers, by the loss on targets that it drew itself or by layer errors."""
  params, ids = _network(), networks.tokens(32)
  if method == 'layer':
    measure = functools.partial(sensitivity.layer_errors, candidates=_UNIFORM)
    step = driver.Step('linears', [('layers/.*', measure)], every=False)
    decisions = driver.run(params, _MODEL, [step], [ids]).decisions
    return {path: entry['layer_errors']['errors'] for path, entry in decisions.items()}
  logits = networks.evaluator(_CONFIG)
  targets = jax.random.categorical(jax.random.key(0), logits(params, ids), -1)

  def loss(params, batch):
    log_p = jax.nn.log_softmax(logits(params, batch['ids']))
    return -jnp.sum(jnp.take_along_axis(log_p, batch['targets'][..., None], -1))

  return sensitivity.loss_scores(loss, params, [{'ids': ids, 'targets': targets}], ['layers/.*'], _UNIFORM)


def _uniform(scores, grid):
  """The allocation of one grid to all: of the scores of `_UNIFORM`, those of that grid count."""
  column = {path: values[_UNIFORM.index(grid)] for path, values in scores.items()}
  return allocation.allocate(_network(), {path: [score] for path, score in column.items()}, [grid], 99)


@functools.cache
def _rounding(grid):
  return networks.quick_jit(grid)


def _divergence(found):
  """Mean over unseen tokens of the divergence of the rounded network from the float one, in nats."""
  params = _network()
  for path, choice in found.choices.items():
    params = trees.put(params, f'{path}/kernel', _rounding(choice.grid)(trees.get(params, path)['kernel']))
  log_p = lambda tree: jax.nn.log_softmax(networks.evaluator(_CONFIG)(tree, networks.tokens(64, seed=1)))
  exact = log_p(_network())
  return float(jnp.mean(jnp.sum(jnp.exp(exact) * (exact - log_p(params)), -1)))


class AllocationTest(parameterized.TestCase):

  @parameterized.product(
      seed=[0, 1], bits=[5.0, 6.5], agree=[(), (('a/q', 'a/k', 'a/v'),), (('a/q', 'c'), ('a/v', 'b'))])
  def test_equals_the_best_of_all_combinations(self, seed, bits, agree):
    scores = _random_scores(seed)
    found = allocation.allocate(_tree(), scores, _GRIDS, bits, agree)
    self.assertAlmostEqual(found.score, _best(scores, bits, agree), places=12)
    self.assertEqual(found.bound, found.score)
    stored = sum(_stored(path, choice.grid) for path, choice in found.choices.items())
    self.assertAlmostEqual(found.bits, stored / sum(np.prod(shape) for shape in _SHAPES.values()), places=12)
    self.assertLessEqual(found.bits, bits)
    for group in agree:
      self.assertLen({found.choices[path].grid for path in group}, 1)

  @parameterized.parameters(('loss', 0.6), ('layer', 0.95))
  def test_beats_four_bits_for_all_in_the_bits_that_these_take(self, method, factor):
    scores = _scores(method)
    uniform = _uniform(scores, _INT4)
    found = allocation.allocate(_network(), scores, _UNIFORM, uniform.bits)
    self.assertBetween(found.bits, uniform.bits - 0.1, uniform.bits)
    self.assertEqual(found.choices[_SENSITIVE].grid, _INT8)
    self.assertLess(found.score, uniform.score)
    self.assertLess(_divergence(found), factor * _divergence(uniform))

  def test_rounding_steps_take_the_grids_that_are_written(self):
    scores = _scores('loss')
    found = allocation.allocate(_network(), scores, _UNIFORM, 6.0, allocation.sharing(_MODEL, scores))
    self.assertGreater(len({choice.grid for choice in found.choices.values()}), 1)
    params = found.written(_network())
    validate.validate(params, _CONFIG)
    result = driver.run(params, _MODEL, [_ROUND], []).params
    for path, choice in found.choices.items():
      kernel = trees.get(result, path)['kernel']
      self.assertEqual((kernel.format, kernel.axis), (choice.grid.format, choice.grid.axis))
      self.assertAlmostEqual(kernel.bits_per_value, choice.bits, places=12)
    others = set(trees.linears(result)) - set(found.choices)
    self.assertFalse(any(isinstance(trees.get(result, path)['kernel'], qtensor.QTensor) for path in others))

  def test_linears_that_read_the_same_share_a_group(self):
    paths = [path for path in trees.linears(_network()) if path != 'layers/1/mlp/gate']
    joined = [('attention/q', 'attention/k', 'attention/v'), ('mlp/gate', 'mlp/up')]
    want = [tuple(f'layers/{i}/{name}' for name in names) for i in range(2) for names in joined][:3]
    self.assertEqual(allocation.sharing(_MODEL, paths), tuple(want))

  def test_reports_every_choice_and_the_totals(self):
    found = allocation.allocate(_tree(), _random_scores(0), _GRIDS, 5.0)
    lines, decisions = found.table().splitlines(), found.decisions()
    self.assertEqual(lines[0].split(), ['linear', 'grid', 'bits', 'score'])
    self.assertCountEqual([line.split()[0] for line in lines[1:-1]], _SHAPES)
    self.assertEqual(list(decisions), list(_SHAPES))
    for path, entries in decisions.items():
      entry = entries['allocation']
      self.assertIn(entry['grid'], ('int2', 'int4', 'int8', 'dint4 g8', 'int3 by input'))
      line = next(line for line in lines if line.startswith(f'{path} '))
      self.assertIn(f'  {entry["grid"]} ', line)
      self.assertIn(f' {entry["bits"]:.3f}  {entry["score"]:.4g}', line)
    self.assertStartsWith(lines[-1], '5 linears')
    self.assertIn(f'{found.bits:.3f}  {found.score:.4g}', lines[-1])

  @parameterized.parameters(*range(20))
  def test_the_bits_of_an_allocation_are_a_budget_that_it_keeps_to(self, seed):
    """Though they are a mean, which is rounded."""
    rng = np.random.default_rng(seed)
    shape = lambda: (8 * int(rng.integers(1, 999)), int(rng.integers(1, 999)))
    params = {name: {'kernel': jax.ShapeDtypeStruct(shape(), jnp.float32)} for name in 'abc'}
    candidates = [quantizers.WeightQuantizer(formats.IntFormat(bits)) for bits in (4, 8)]
    scores = {name: (1.0, float(rng.random())) for name in params}
    least = allocation.allocate(params, {name: (0.0, 0.0) for name in params}, candidates[:1] * 2, 1e300)
    for bits in (least.bits, 5.0, 1e300):
      found = allocation.allocate(params, scores, candidates, bits)
      again = allocation.allocate(params, scores, candidates, found.bits)
      self.assertEqual(again.choices, found.choices)

  def test_refusals(self):
    scores = _random_scores(0)
    quantized = trees.put(_tree(), 'b/kernel', jax.eval_shape(_INT4.quantized, jnp.ones((32, 24))))
    cases = [
        ('^no candidates to allocate bits to$', {'candidates': ()}),
        ('^no linears to allocate bits to$', {'scores': {}}),
        ('^a budget of 2.5 bits per weight is below 3.3846, what the cheapest candidates store$', {'bits': 2.5}),
        ('^a budget of inf bits per weight is none$', {'bits': np.inf}),
        ('^b: already quantized to int4$', {'params': quantized}),
        ('^b: needs a finite score for each of 5 candidates, not ', {'scores': {**scores, 'b': (1.0, 2.0)}}),
        ('^b: needs a finite score ', {'scores': {**scores, 'b': (1.0, 2.0, np.nan, 1.0, 1.0)}}),
        ('^d: has scores, but is no linear of the tree$', {'scores': {**scores, 'd': scores['b']}}),
        ('^b/kernel: has scores, but is no linear', {'scores': {**scores, 'b/kernel': scores['b']}}),
        ('^d: is to agree with others, but has no scores$', {'agree': [('b', 'd')]}),
        ('^b: is in two groups of linears that are to agree$', {'agree': [('b', 'c'), ('a/q', 'b')]})]
    for message, options in cases:
      with self.subTest(message), self.assertRaisesRegex(errors.UserError, message):
        allocation.allocate(
            **{'params': _tree(), 'scores': scores, 'candidates': _GRIDS, 'bits': 5.0, 'agree': (), **options})


if __name__ == '__main__':
  absltest.main()
