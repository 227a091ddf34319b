"""Methods that fold leave whole networks the same functions to the rounding of float64, which hides no mistake."""

import re

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant.calibration import driver
from jaxquant.calibration import sites
from jaxquant.models import staging
from jaxquant.numerics import formats
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.transforms import methods
from jaxquant.transforms import recipes
from tests import networks
from tests import widening

# Methods, and options with which they scale at every site.
_METHODS = {
    'norm_fusion': {}, 'smooth_quant': {}, 'awq': {'candidates': 4}, 'aqas': {'candidates': 4},
    'outlier_suppression': {'candidates': 4}}


def _params(style: str) -> dict:
  """Parameters that float32 cannot hold."""
  rng = np.random.default_rng(0)
  wide = lambda x: jnp.asarray(np.float64(x) * (1 + 1e-8 * rng.normal(size=x.shape)))
  with jax.enable_x64(True):
    return jax.tree.map(wide, networks.params_with_outliers(style))


def _folded(style: str, method: str) -> tuple[dict, tuple[sites.Site, ...]]:
  """(the tree with all that the method can fold folded, the sites where that is)."""
  config = networks.config(style)
  foldable = networks.foldable_sites(style)
  if methods.get(method).norms_only:
    foldable = tuple(site for site in foldable if site.reads_residual)
  recipe = recipes.Recipe(
      (method, 'round_to_nearest'), {method: _METHODS[method]}, quantizers.WeightQuantizer(formats.parse('uint4')),
      activation=quantizers.DynamicQuantizer(formats.parse('uint4')),
      site_patterns=tuple(re.escape(site.name) for site in foldable))
  with jax.enable_x64(True):
    result = driver.run(_params(style), staging.staged(config), recipe.folds(foldable), [networks.tokens(4)])
  return result.params, foldable


class EquivalenceTest(parameterized.TestCase):

  @parameterized.product(style=list(networks.STYLES), method=list(_METHODS))
  def test_logits_stay_while_every_kernel_at_a_site_changes(self, style, method):
    model, ids = staging.make(networks.config(style)), networks.tokens(3, seed=1)
    logits = lambda tree: widening.in_float64(lambda params, ids: model.apply({'params': params}, ids), tree, ids)
    before, (after, foldable) = _params(style), _folded(style, method)
    for path in (consumer for site in foldable for consumer in site.consumers):
      old, new = (np.asarray(trees.get(tree, path)['kernel']) for tree in (before, after))
      self.assertGreater(np.max(np.abs(new - old)), 0.1 * np.max(np.abs(old)), path)
    want, got = logits(before), logits(after)
    self.assertEqual(want.dtype, np.float64)
    self.assertLessEqual(np.max(np.abs(got - want)), 1e-14 * np.max(np.abs(want)))


if __name__ == '__main__':
  absltest.main()
