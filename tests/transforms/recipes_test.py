"""Recipes: what each method is told, where it works, and mistakes named before anything runs."""

from absl.testing import absltest
from absl.testing import parameterized

from jaxquant import errors
from jaxquant.models import staging
from jaxquant.numerics import formats
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.transforms import methods
from jaxquant.transforms import recipes
from tests import networks

_WEIGHT = quantizers.WeightQuantizer(formats.parse('uint4'))
_ACTIVATION = quantizers.DynamicQuantizer(formats.parse('uint8'))


def _sites(style='opt'):
  return staging.model_sites(networks.config(style))


def _bound(name, **options):
  """What the factory of the method called `name` is given by a recipe of 4-bit weights and 8-bit activations."""
  names = (name,) if methods.get(name).rounds else (name, 'round_to_nearest')
  recipe = recipes.Recipe(
      methods=names, options={name: options} if options else {}, weight=_WEIGHT, activation=_ACTIVATION)
  found = [factory.keywords for step in recipe.steps(_sites()) for _, factory in step.rules
           if factory.func is methods.get(name).factory]
  return found[0]


class ToldTest(parameterized.TestCase):

  @parameterized.parameters(
      ('norm_fusion', {}), ('awq', {'weight': _WEIGHT}), ('gptq', {'weight': _WEIGHT}),
      *((name, {'weight': _WEIGHT, 'activation': _ACTIVATION})
        for name in ('smooth_quant', 'aqas', 'outlier_suppression')))
  def test_methods_are_told_of_the_numbers_that_their_papers_see(self, name, told):
    """AWQ judges on float activations, whatever the recipe quantizes them to afterwards."""
    self.assertEqual(_bound(name), told)

  def test_options_come_before_what_a_method_is_told(self):
    self.assertEqual(_bound('awq', activation=_ACTIVATION)['activation'], _ACTIVATION)
    self.assertIsNone(_bound('aqas', activation=None)['activation'])

  @parameterized.parameters(*methods.METHODS)
  def test_what_a_method_is_told_is_no_option_of_a_configuration(self, name):
    self.assertEmpty(methods.get(name).options().keys() & {'weight', 'activation'})


  @parameterized.parameters(False, True)
  def test_folds_are_judged_with_ranges_as_symmetric_as_those_that_follow(self, symmetric):
    recipe = recipes.Recipe(methods=('aqas', 'round_to_nearest'), activation=8, symmetric_ranges=symmetric)
    fold, ranges, _ = recipe.steps(_sites())
    judge = fold.rules[0][1].keywords['activation']
    self.assertEqual((judge.format.symmetric, judge.per_tensor), (symmetric, True))
    self.assertEqual(ranges.rules[0][1].keywords['symmetric'], symmetric)


class SitesTest(parameterized.TestCase):

  def _claimed(self, style, **fields):
    (pattern, _), = recipes.Recipe(**fields).folds(_sites(style))[0].rules
    return trees.matching(pattern, [site.name for site in _sites(style)])

  def test_a_method_folds_where_the_recipe_and_its_own_pattern_say(self):
    methods_of = lambda name: {'methods': (name, 'round_to_nearest')}
    everywhere = ['attention/input', 'attention/o/input', 'mlp/input', 'mlp/down/input']
    for name, options, want in (
        ('outlier_suppression', {}, everywhere), ('smooth_quant', {}, ['attention/input', 'mlp/input']),
        ('outlier_suppression', {'site_pattern': r'.*/(attention|mlp)/input'}, ['attention/input', 'mlp/input']),
        ('awq', {'site_pattern': r'.*/down/input'}, ['mlp/down/input'])):
      with self.subTest(f'{name} {options}'):
        claimed = self._claimed('opt', options={name: options}, **methods_of(name))
        self.assertEqual(claimed, tuple(f'layers/0/{site}' for site in want))

  @parameterized.parameters(
      ((), {'attention': 0.7, 'mlp': 0.7}), (((r'.*mlp/.*', 0.2),), {'attention': 0.7, 'mlp': 0.2}),
      (((r'.*mlp/.*', 0.2), (r'layers/.*', 1.0)), {'attention': 1.0, 'mlp': 0.2}))
  def test_a_site_has_the_exponent_of_the_first_pattern_that_matches_it(self, exponents, want):
    recipe = recipes.Recipe(methods=('smooth_quant', 'round_to_nearest'),
                            options={'smooth_quant': {'exponent': 0.7, 'exponents': exponents}})
    (_, rules, *_), = recipe.folds(_sites())
    of = lambda site: next(factory for pattern, factory in rules if trees.matching(pattern, (site,)))
    self.assertEqual({name: of(f'layers/0/{name}/input').keywords['exponent'] for name in want}, want)


class RefusalsTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'methods': ('awq', 'round_to_nearest'), 'options': {'awq': {'candidate': 3}}},
       "^awq has no option 'candidate', only weight, candidates, two_exponents, activation, tokens, site_pattern$"),
      ({'methods': ('round_to_nearest',), 'options': {'gptq': {'act_order': True}}},
       '^there are options for gptq, which is none of the methods round_to_nearest$'),
      ({'methods': ('gptq',), 'options': {'gptq': {'site_pattern': '.*'}}}, "^gptq has no option 'site_pattern'"),
      ({'site_patterns': ('.*', '(')}, r"^site_patterns: '\(' is not a regular expression"),
      ({'weight_pattern': '['}, r"^weight_pattern: '\[' is not a regular expression"),
      ({'clip_pattern': '*'}, r"^clip_pattern: '\*' is not a regular expression"),
      ({'methods': ('awq', 'gptq'), 'options': {'awq': {'site_pattern': ')'}}}, r"^awq.site_pattern: '\)' is not"),
      ({'methods': ('smooth_quant', 'gptq'), 'options': {'smooth_quant': {'exponents': (('(', 0.5),)}}},
       r"^smooth_quant.exponents: '\(' is not"),
      ({'methods': ('awq', 'gptq'), 'weight': None}, '^gptq is for weights that are quantized, and those of 16 bits'),
      ({'methods': ('round_to_nearest',), 'weight': None}, '^round_to_nearest is for weights that are quantized'),
      ({'methods': ('gptq', 'awq')}, '^methods gptq, awq: those that fold at sites must come before the others$'),
      ({'methods': ('quip',)}, "^there is no method 'quip', only norm_fusion, "))
  def test_names_what_is_wrong(self, fields, message):
    with self.assertRaisesRegex(errors.UserError, message):
      recipes.Recipe(**fields)

  @parameterized.parameters(
      ({'site_patterns': ('layers/7/.*',)}, "site_patterns 'layers/7/.*' and awq.site_pattern '.*'"),
      ({'options': {'awq': {'site_pattern': 'nothing'}}}, "site_patterns 'layers/.*' and awq.site_pattern 'nothing'"))
  def test_a_method_that_could_fold_nowhere_is_named_with_the_patterns(self, fields, message):
    recipe = recipes.Recipe(methods=('awq', 'round_to_nearest'), **fields)
    with self.assertRaisesRegex(errors.UserError, f'^awq: nothing can be folded at any site that {message} match$'):
      recipe.folds(_sites())

  @parameterized.parameters('.*/down/input', 'nothing', 'layers/0/mlp/input')
  def test_an_exponent_for_no_site_is_named(self, pattern):
    recipe = recipes.Recipe(methods=('smooth_quant', 'round_to_nearest'),
                            options={'smooth_quant': {'exponents': (('.*/mlp/input', 0.3), (pattern, 0.4))}})
    with self.assertRaisesRegex(errors.UserError, f"^smooth_quant.exponents: '{pattern}' matches no site that "):
      recipe.folds(_sites())

  def test_without_weights_to_quantize_there_are_no_methods_unless_named(self):
    self.assertEqual(recipes.Recipe(weight=None).methods, ())
    self.assertEqual(recipes.Recipe().methods, ('round_to_nearest',))


if __name__ == '__main__':
  absltest.main()
