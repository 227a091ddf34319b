"""Folding leaves the full-precision function as it is, at every site of every architecture."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.calibration import driver
from jaxquant.calibration import sites
from jaxquant.models import staging
from jaxquant.numerics import formats
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.transforms import folding
from jaxquant.transforms import recipes
from tests import networks

_SITES = [(style, site.name) for style in networks.STYLES
          for site in staging.staged(networks.config(style)).blocks[0][1].sites if site.producer]


def _block(style):
  return staging.staged(networks.config(style)).blocks[0][1], trees.get(networks.params(style), 'layers/0')


def _factors(site, params, seed=0):
  """Random (scale, shift or None) that the site can take up."""
  rng = np.random.default_rng(seed)
  features = trees.get(params, site.consumers[0])['kernel'].shape[0]
  scale = folding.tied(jnp.asarray(np.exp(rng.normal(size=features)), jnp.float32), site)
  shift = folding.tied(jnp.asarray(rng.normal(size=features), jnp.float32), site)
  return scale, shift if site.shifts else None


class FoldingTest(parameterized.TestCase):

  @parameterized.parameters(*_SITES)
  def test_the_function_stays_and_the_site_changes(self, style, name):
    block, params = _block(style)
    site = block.site(name)
    scale, shift = _factors(site, params)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 16)), jnp.float32)
    folding.check(params, site)
    folded = folding.fold(params, site, scale, shift)
    with jax.default_matmul_precision('highest'):
      (want, before), (got, after) = (jax.jit(block.taps)(tree, x) for tree in (params, folded))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
    changed = (before[name] - (0 if shift is None else shift)) / scale
    np.testing.assert_allclose(after[name], changed, rtol=1e-4, atol=1e-4)
    for other in block.sites:
      if other.name != name:
        np.testing.assert_allclose(after[other.name], before[other.name], rtol=1e-3, atol=1e-4)

  @parameterized.parameters(*networks.STYLES)
  def test_a_tree_of_bfloat16_is_folded_in_float32_and_rounded_once(self, style):
    block, params = _block(style)
    stored = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), stored)
    for site in block.sites:
      if site.producer:
        factors = _factors(site, params)
        got, want = (folding.fold(tree, site, *factors) for tree in (stored, exact))
        restored = {} if site.residual is None else {site.residual: trees.get(want, site.residual)}
        want = jax.tree.map(lambda x: x.astype(jnp.bfloat16), want)
        for path, entry in restored.items():  # An entry of its own, which nothing stored in bfloat16 before.
          want = trees.put(want, path, entry)
        jax.tree.map(np.testing.assert_array_equal, got, want)
        self.assertEqual(jax.tree.map(lambda x: x.dtype, got), jax.tree.map(lambda x: x.dtype, want))

  @parameterized.parameters(('llama', 'awq'), ('opt', 'outlier_suppression'), ('bert', 'aqas'), ('bert', 'norm_fusion'))
  def test_methods_leave_a_tree_of_bfloat16_in_bfloat16(self, style, name):
    config = networks.config(style, 'bfloat16')
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), networks.params(style))
    recipe = recipes.Recipe(
        methods=(name, 'round_to_nearest'), weight=quantizers.WeightQuantizer(formats.parse('uint4')),
        options={} if name == 'norm_fusion' else {name: {'candidates': 2}},
        activation=quantizers.DynamicQuantizer(formats.parse('uint8')))
    folded = driver.run(
        params, staging.staged(config), recipe.folds(staging.model_sites(config)), [networks.tokens(4)]).params
    residuals = tuple(site.residual for site in staging.model_sites(config) if site.residual)
    leaves = {path: leaf for path, leaf in trees.arrays(folded).items() if not path.startswith(residuals or '//')}
    self.assertEqual({leaf.dtype for leaf in leaves.values()}, {jnp.dtype(jnp.bfloat16)})
    self.assertEqual(set(trees.arrays(params)) - set(leaves), set())
    logits = networks.evaluator(config, jit=networks.quick_jit)
    want, got = (logits(tree, networks.tokens(2)).astype(jnp.float32) for tree in (params, folded))
    self.assertLess(jnp.mean((got - want) ** 2), 1e-3 * jnp.mean(want**2))

  def test_in_float64_to_rounding(self):
    """y = ((x g + b) W + c) through a norm's affine part and a linear that both change."""
    with jax.enable_x64(True):
      rng = np.random.default_rng(0)
      make = lambda *shape: jnp.asarray(rng.normal(size=shape))
      params = {'norm': {'scale': make(8), 'bias': make(8)}, 'linear': {'kernel': make(8, 6), 'bias': make(6)}}
      site = sites.Site('input', 'norm', ('linear',), shifts=True)
      evaluate = lambda tree, x: (x * tree['norm']['scale'] + tree['norm']['bias']) @ tree['linear']['kernel'] + (
          tree['linear']['bias'])
      x, scale, shift = make(20, 8), jnp.exp(3 * make(8)), make(8)
      folded = folding.fold(params, site, scale, shift)
      want, got = evaluate(params, x), evaluate(folded, x)
      np.testing.assert_allclose(got, want, rtol=0, atol=1e-14 * np.abs(want).max())
      np.testing.assert_allclose(folded['norm']['scale'], params['norm']['scale'] / scale)

  def test_what_a_residual_branch_reads_is_restored_through_several_folds(self):
    rng = np.random.default_rng(0)
    make = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    params = {'norm': {'scale': make(8), 'bias': make(8)}, 'linear': {'kernel': make(8, 8), 'bias': make(8)}}
    site = sites.Site('input', 'norm', ('linear',), shifts=True, residual='residual')
    x = make(20, 8)

    def evaluate(tree):
      h = x * tree['norm']['scale'] + tree['norm']['bias']
      branch = h * tree.get('residual', {}).get('scale', 1) + tree.get('residual', {}).get('shift', 0)
      return branch + h @ tree['linear']['kernel'] + tree['linear']['bias']

    folded = folding.fold(params, site, jnp.exp(make(8)), make(8))
    twice = folding.fold(folding.fold(folded, site, None, make(8)), site, jnp.exp(make(8)))
    shifted = folding.fold(params, site, None, make(8))
    self.assertEqual({entry.shape for entry in shifted['residual'].values()}, {(8,)})
    for tree in (folded, twice, shifted):
      np.testing.assert_allclose(evaluate(tree), evaluate(params), rtol=1e-4, atol=1e-4)

  def test_a_shift_gives_consumers_and_producer_the_bias_they_lack(self):
    params = {'v': {'kernel': jnp.eye(4)}, 'o': {'kernel': 2 * jnp.eye(4)}}
    site = sites.Site('o/input', 'v', ('o',), shifts=True)
    folded = folding.fold(params, site, None, jnp.arange(4.0))
    np.testing.assert_array_equal(folded['v']['bias'], -np.arange(4))
    np.testing.assert_array_equal(folded['o']['bias'], 2 * np.arange(4))
    self.assertNotIn('bias', params['o'])

  def test_channels_that_repeat_one_of_the_producer_share_a_scale(self):
    site = sites.Site('o/input', 'v', ('o',), repeats=2, run=3)
    values = jnp.asarray([1, 2, 3, 4, 1, 6, 7, 8, 9, 1, 1, 1.0])
    np.testing.assert_array_equal(folding.tied(values, site), [4, 2, 6, 4, 2, 6, 7, 8, 9, 7, 8, 9])
    np.testing.assert_array_equal(folding.tie(folding.tied(values, site), site), [4, 2, 6, 7, 8, 9])


class RefusalsTest(parameterized.TestCase):

  def _check(self, changes=(), producer='norm'):
    params = {'norm': {'scale': jnp.ones(4)}, 'up': {'kernel': jnp.ones((4, 4))}}
    for path, value in changes:
      params = trees.put(params, path, value)
    folding.check(params, sites.Site('input', producer, ('up',), through=('value',)))

  def test_a_plain_site_passes(self):
    self._check()
    self._check([('input/quantizer', quantizers.DynamicQuantizer(formats.IntFormat(8)))])

  @parameterized.parameters(
      ([('up/kernel', 'codes')], 'norm', 'up: holds integer codes already'),
      ([('input/scale', jnp.ones(4))], 'norm', 'input: holds a scale already'),
      ([('up/input/gather', jnp.arange(4))], 'norm', 'up/input: holds a gather already'),
      ([('input/quantizer', quantizers.ClipQuantizer(jnp.float32(-1), jnp.float32(1), 4))], 'norm',
       'input: holds a quantizer already, which a fold would make wrong; fold first'),
      ([('value/quantizer', quantizers.ClipQuantizer(jnp.float32(-1), jnp.float32(1), 4))], 'norm',
       'value: holds a quantizer already'),
      ([], None, 'input: there is no norm or linear before it'), ([], 'nrom', 'input: there is no norm or linear nrom'))
  def test_what_a_fold_would_break(self, changes, producer, message):
    codes = quantize.quantize(jnp.ones((4, 4)), formats.IntFormat(4))
    changes = [(path, codes if isinstance(value, str) else value) for path, value in changes]
    with self.assertRaisesRegex(errors.UserError, message):
      self._check(changes, producer)

  def test_a_site_that_nothing_reads(self):
    with self.assertRaisesRegex(errors.UserError, 'input: there is no linear that reads it'):
      folding.check({'norm': {'scale': jnp.ones(4)}}, sites.Site('input', 'norm', ()))


if __name__ == '__main__':
  absltest.main()
