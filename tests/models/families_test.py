"""The sites of every family are right: folds leave its function alone, and methods run to codes that evaluate."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant.calibration import driver
from jaxquant.calibration import sites as sites_lib
from jaxquant.models import staging
from jaxquant.models import validate
from jaxquant.numerics import formats
from jaxquant.numerics import qtensor
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.transforms import folding
from jaxquant.transforms import recipes
from tests import networks

_LAYERS = 2
# Not families, but variants of them: the slower methods see the same blocks there.
_VARIANTS = ('llama, biases', 'bert, no head')
_ROUNDED = ('awq', 'round_to_nearest')


def _logits(config, params, implementation='simulated', jit=networks.quick_jit):
  evaluate = networks.evaluator(config, implementation, jit)
  with jax.default_matmul_precision('highest'):
    return np.asarray(evaluate(params, networks.tokens(3)))


def _factors(params, site: sites_lib.Site, rng):
  """Random scales of a site's channels, equal where they repeat one of the producer's, and shifts where these fold."""
  features = trees.get(params, site.consumers[0])['kernel'].shape[0]
  tied = lambda values: folding.tied(jnp.asarray(values, jnp.float32), site)
  return tied(np.exp2(rng.uniform(-2, 2, features))), tied(rng.normal(size=features)) if site.shifts else None


class FamiliesTest(parameterized.TestCase):

  @parameterized.parameters(*networks.FAMILIES)
  def test_random_folds_at_every_site_leave_the_function_alone(self, style):
    config, rng = networks.config(style, layers=_LAYERS), np.random.default_rng(1)
    params = networks.params(style, layers=_LAYERS)
    # A table that is looked up too cannot be scaled for the head alone.
    sites = [site for site in staging.model_sites(config) if site.producer and 'embedding' not in site.consumers]
    self.assertGreaterEqual(len(sites), 2 * _LAYERS + config.head - config.tied)
    folded = params
    for site in sites:
      folded = folding.fold(folded, site, *_factors(params, site, rng))
    validate.validate(folded, config)
    want = _logits(config, params)
    np.testing.assert_allclose(_logits(config, folded), want, rtol=0, atol=1e-5 * np.abs(want).max())
    # The test sees what it should: one factor that is not undone changes the function.
    site = sites[0]
    broken = folding.consumed(params, site, *_factors(params, site, rng))
    self.assertGreater(np.abs(_logits(config, broken) - want).max(), 1e-3 * np.abs(want).max())

  @parameterized.parameters(
      *((style, _ROUNDED) for style in networks.FAMILIES),
      *((style, ('outlier_suppression', 'gptq')) for style in networks.FAMILIES if style not in _VARIANTS))
  def test_methods_run_to_codes_that_evaluate_alike(self, style, methods):
    # What a block makes of the norm behind it, another block shows; the others are alike.
    layers = 2 if networks.config(style).post_norm else 1
    config, params = networks.config(style, layers=layers), networks.params(style, layers=layers)
    model_sites = staging.model_sites(config)
    recipe = recipes.Recipe(
        methods=methods, options={methods[0]: {'candidates': 3}},
        weight=quantizers.WeightQuantizer(formats.parse('int8')),
        activation=quantizers.DynamicQuantizer(formats.parse('int8')))
    made = driver.run(params, staging.staged(config), recipe.steps(model_sites), [networks.tokens(8)]).params
    validate.validate(made, config)
    for path in trees.linears(made):
      inside = path.startswith('layers/')
      self.assertEqual(isinstance(trees.get(made, path)['kernel'], qtensor.QTensor), inside, path)
    jit = networks.unoptimized_jit if methods == _ROUNDED else networks.quick_jit
    want, got = _logits(config, params), _logits(config, made, jit=jit)
    self.assertLess(np.mean((got - want) ** 2), 1e-2 * np.mean(want ** 2))
    self.assertGreater(np.abs(got - want).max(), 0)
    if methods == _ROUNDED:  # how codes were chosen has no part in their products
      np.testing.assert_array_equal(_logits(config, made, 'xla', jit), got)


if __name__ == '__main__':
  absltest.main()
