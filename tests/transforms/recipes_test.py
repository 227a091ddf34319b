"""Recipes: what each method is told, where it works, and mistakes named before anything runs."""

from absl.testing import absltest
from absl.testing import parameterized

from jaxquant.models import staging
from jaxquant.numerics import formats
from jaxquant.numerics import quantizers
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


if __name__ == '__main__':
  absltest.main()
