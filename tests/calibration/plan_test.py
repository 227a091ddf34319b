"""Plans: which factory gets which names of which block, in which order, on which stream, and what is refused."""

import functools

from absl.testing import absltest
from absl.testing import parameterized

from jaxquant import errors
from jaxquant.calibration import plan
from jaxquant.calibration import sites
from jaxquant.calibration import transform

_FIRST = sites.Block((
    sites.Site('attention/input', None, ('attention/q', 'attention/k')),
    sites.Site('attention/o/input', 'attention/k', ('attention/o',)),
    sites.Site('mlp/input', None, ('mlp/up',))), None, None)
_HEAD = sites.Block((sites.Site('head/input', None, ('head',)),), None, None)
_MODEL = sites.StagedModel(None, (('layers/1', _FIRST), ('layers/10', _FIRST), ('', _HEAD)))
_LAYER = {'attention': {'q': {'kernel': 0}, 'k': {'kernel': 0}, 'o': {'kernel': 0}}, 'mlp': {'up': {'kernel': 0}}}
_PARAMS = {'embedding': {'kernel': 0}, 'layers': {'1': _LAYER, '10': _LAYER}, 'head': {'kernel': 0}}
_LINEARS = ('attention/q', 'attention/k', 'attention/o', 'mlp/up')


def _transform(claim, needs_teacher=False, needs_data=True):
  del claim
  return transform.Transform(None, None, None, needs_teacher=needs_teacher, needs_data=needs_data)


# Factories are told apart by identity.
_a, _b = functools.partial(_transform), functools.partial(_transform)


def _plan(*rules, **options):
  (made,) = plan.make(_PARAMS, _MODEL, [plan.Step(**{'owns': 'linears', 'rules': rules, **options})])
  return {path: [(factory, claim.names) for factory, claim in pairs] for path, pairs in made.items()}


class PlanTest(parameterized.TestCase):

  def test_names_are_relative_to_the_block_they_are_in(self):
    """A block is no home for names of another whose path begins with its own."""
    self.assertEqual(_plan(('.*', _a)), {
        'layers/1': [(_a, _LINEARS)], 'layers/10': [(_a, _LINEARS)], '': [(_a, ('embedding', 'head'))]})
    self.assertEqual(_plan(('layers/10?/mlp/input', _b), ('head/input', _a), owns='sites', every=False), {
        'layers/1': [(_b, ('mlp/input',))], 'layers/10': [(_b, ('mlp/input',))], '': [(_a, ('head/input',))]})

  def test_claims_carry_the_block_so_that_equal_blocks_share_a_transform(self):
    (made,) = plan.make(_PARAMS, _MODEL, [plan.Step('linears', [('.*', _a)])])
    claims = [claim for pairs in made.values() for _, claim in pairs]
    self.assertEqual([claim.block for claim in claims], [_FIRST, _FIRST, _HEAD])
    first, second, head = (plan.transform(_a, claim) for claim in claims)
    self.assertIs(first, second)
    self.assertIsNot(first, head)

  def test_factories_keep_the_order_of_their_first_names(self):
    self.assertEqual(_plan(('.*/o', _b), ('layers/.*', _a), every=False)['layers/1'], [
        (_a, ('attention/q', 'attention/k', 'mlp/up')), (_b, ('attention/o',))])

  def test_sequential_goes_site_by_site_and_ends_with_what_reads_none(self):
    stages = _plan(('.*/[ko]', _b), ('.*', _a), schedule='sequential')
    self.assertEqual(stages, {
        'layers/1': (expected := [
            (_a, ('attention/q',)), (_b, ('attention/k',)), (_b, ('attention/o',)), (_a, ('mlp/up',))]),
        'layers/10': expected, '': [(_a, ('head',)), (_a, ('embedding',))]})
    self.assertEqual(_plan(('layers/1/.*', _a), owns='sites', every=False, schedule='sequential')['layers/1'], [
        (_a, ('attention/input',)), (_a, ('attention/o/input',)), (_a, ('mlp/input',))])

  def test_streams_are_those_that_somebody_reads(self):
    free, taught = (functools.partial(_transform, **options) for options in (
        {'needs_data': False}, {'needs_teacher': True}))

    def streams(*rules, **options):
      step = plan.Step('linears', rules, every=False, **options)
      return plan.streams(step, plan.make(_PARAMS, _MODEL, [step])[0])

    self.assertEqual(streams(('.*', free), stream='quantized'), set())
    self.assertEqual(streams(('.*', None)), set())
    self.assertEqual(streams(('head', _a), ('.*', free), stream='quantized'), {'quantized'})
    self.assertEqual(streams(('.*', _a)), {'float'})
    self.assertEqual(streams(('.*', taught), stream='quantized'), {'float', 'quantized'})
    for rules, found in (([('.*', _a)], {'float', 'quantized'}), ([('.*', None)], set())):
      step = plan.Learning(rules)
      self.assertEqual(plan.streams(step, plan.make(_PARAMS, _MODEL, [step])[0]), found)


  def test_windows_are_runs_of_layers_and_the_head_is_by_itself(self):
    model = sites.StagedModel(None, (*((f'layers/{i}', _FIRST) for i in range(5)), ('', _HEAD)))
    for size, expected in ((1, [[0], [1], [2], [3], [4]]), (2, [[0, 1], [2, 3], [4]]), (9, [[0, 1, 2, 3, 4]])):
      made = plan.windows(model, size)
      self.assertEqual(made, [[(f'layers/{i}', _FIRST) for i in run] for run in expected] + [[('', _HEAD)]])


class RefusalsTest(parameterized.TestCase):

  @parameterized.parameters(
      ([('layers/.*', _a)], {}, 'rules for linears: no rule claims embedding, head$'),
      ([('.*', _a), ('head', _b)], {}, "rules for linears: 'head' wins none of 10 names"),
      ([('layers/2/.*', _a)], {'every': False}, "rules for linears: 'layers/2/.*' wins none"),
      ([('(', _a)], {}, r"rules for linears: '\(' is not a regular expression"),
      ([('.*/q', _a)], {'owns': 'sites'}, "rules for sites: '.*/q' wins none of 7 names"),
      ([('.*', _a)], {'owns': 'kernels'}, "unknown kind of names 'kernels'; there are linears, sites, operands"),
      ([('.*', _a)], {'schedule': 'learn'}, "unknown schedule 'learn'; there are block, sequential"),
      ([('.*', _a)], {'stream': ''}, "unknown stream ''; there are float, quantized"))
  def test_mistakes_are_named(self, rules, options, message):
    with self.assertRaisesRegex(errors.UserError, message):
      _plan(*rules, **options)

  def test_mistakes_in_learning_are_named(self):
    with self.assertRaisesRegex(errors.UserError, 'no rule claims embedding, head'):
      plan.make(_PARAMS, _MODEL, [plan.Learning([('layers/.*', _a)])])

  def test_window_without_blocks(self):
    with self.assertRaisesRegex(errors.UserError, 'a window of blocks holds at least one, not 0'):
      plan.windows(_MODEL, 0)


if __name__ == '__main__':
  absltest.main()
