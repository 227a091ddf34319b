"""Ranges of attention operands, per tensor and per channel, from calibration to evaluation: the V4 of W4A8V4."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.calibration import driver
from jaxquant.calibration import sites
from jaxquant.models import staging
from jaxquant.models import validate
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.transforms import activation_ranges
from jaxquant.transforms import recipes
from tests import calibrating
from tests import networks

_VALUE, _PATH = 'attention/value', 'layers/0/attention/value'


def _ranges(**options):
  return functools.partial(activation_ranges.activation_ranges, bits=4, **options)


def _run(style, steps, params=None):
  batches = [networks.tokens(4, seed) for seed in (0, 1)]
  return driver.run(params or networks.params(style), staging.staged(networks.config(style)), steps, batches)


@functools.cache
def _operands(style):
  """What the block's taps show of both batches: {point: [8, tokens, ...]}."""
  model, params = staging.staged(networks.config(style)), networks.params(style)
  ids = jnp.concatenate([networks.tokens(4, seed) for seed in (0, 1)])
  taps = networks.quick_jit(model.blocks[0][1].taps)
  return taps(trees.get(params, 'layers/0'), model.embed(params, ids))[1]


class PerChannelTest(parameterized.TestCase):

  @parameterized.parameters(*networks.STYLES)
  def test_values_get_the_extrema_of_every_channel_and_evaluate(self, style):
    result = _run(style, [driver.Step('operands', [('.*/value', _ranges(per_channel=True))], every=False)])
    self.assertEqual(trees.inputs(result.params), (_PATH,))
    quantizer, x = trees.get(result.params, _PATH)['quantizer'], np.asarray(_operands(style)[_VALUE])
    self.assertEqual((quantizer.low.shape, quantizer.bits), ((2, 4), 4))
    np.testing.assert_allclose(quantizer.low, x.min((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(quantizer.high, x.max((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(result.decisions[_PATH]['activation_ranges']['low'], quantizer.low)
    validate.validate(result.params, networks.config(style))
    evaluate = lambda tree, name='simulated': networks.evaluator(
        networks.config(style), name, networks.quick_jit)(tree, networks.tokens(4))
    exact, simulated = evaluate(networks.params(style)), evaluate(result.params)
    np.testing.assert_array_equal(evaluate(result.params, 'xla'), simulated)
    self.assertBetween(float(jnp.mean((simulated - exact) ** 2) / jnp.mean(exact**2)), 1e-6, 0.05)

  def test_what_the_mix_reads_is_off_by_half_a_step_of_its_channel_at_most(self):
    result = _run('llama', [driver.Step('operands', [('.*/value', _ranges(per_channel=True))], every=False)])
    model, quantizer = staging.staged(networks.config('llama')), trees.get(result.params, _PATH)['quantizer']
    x = model.embed(result.params, networks.tokens(4, 0))
    taps = networks.quick_jit(model.blocks[0][1].taps)(trees.get(result.params, 'layers/0'), x)[1]
    error = np.abs(taps['attention/quantized_value'] - taps[_VALUE])
    self.assertTrue((error.max((0, 1)) <= (quantizer.high - quantizer.low) / 15 / 2 * 1.0001).all())
    self.assertTrue((error.max((0, 1)) > 0).all())

  def test_an_outlier_channel_widens_its_own_range_only(self):
    params = networks.params('llama')
    kernel = trees.get(params, 'layers/0/attention/v/kernel')
    params = trees.put(params, 'layers/0/attention/v/kernel', kernel.at[:, 3].multiply(30.0))
    mixed = networks.evaluator(networks.config('llama'), jit=networks.quick_jit)
    exact = mixed(params, networks.tokens(4))
    step = lambda per_channel: driver.Step('operands', [('.*/value', _ranges(per_channel=per_channel))], every=False)
    whole, channels = (
        jnp.mean((mixed(_run('llama', [step(flag)], params).params, networks.tokens(4)) - exact) ** 2)
        for flag in (False, True))
    self.assertLess(channels, whole / 2)

  @parameterized.parameters('minmax', 'average', 'moving_average')
  def test_each_method_is_that_of_the_channels_one_by_one(self, method):
    x = np.random.default_rng(0).normal(size=(3, 4, 6, 2, 5)).astype(np.float32)
    claim = calibrating.claim('value', sites=[sites.Site('value', None, ())])
    apply = lambda batches, **options: calibrating.apply(
        _ranges(method=method, **options), claim, {}, [calibrating.batch({'value': b}) for b in batches])
    record = apply(x, per_channel=True)[1]['value']
    for head, feature in ((0, 0), (1, 4)):
      alone = apply(x[..., head, feature : feature + 1])[1]['value']
      np.testing.assert_allclose(record['low'][head, feature], alone['low'], rtol=1e-6)
      np.testing.assert_allclose(record['high'][head, feature], alone['high'], rtol=1e-6)

  def test_gradients_of_the_ends_are_those_of_channels_one_by_one(self):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 2, 3)), jnp.float32)
    low, high = -jnp.linspace(0.5, 1.5, 6).reshape(2, 3), jnp.linspace(1, 2, 6).reshape(2, 3)
    loss = lambda low, high, x: jnp.sum(jnp.sin(3 * quantizers.ClipQuantizer(low, high, 4)(x)))
    gradients = jax.grad(loss, argnums=(0, 1, 2))(low, high, x)
    for i, j in np.ndindex(2, 3):
      want = jax.grad(loss, argnums=(0, 1, 2))(low[i, j], high[i, j], x[..., i, j])
      np.testing.assert_allclose(gradients[0][i, j], want[0], rtol=1e-5)
      np.testing.assert_allclose(gradients[1][i, j], want[1], rtol=1e-5)
      np.testing.assert_allclose(gradients[2][..., i, j], want[2], rtol=1e-5)


class CacheTest(parameterized.TestCase):

  @parameterized.parameters(*networks.STYLES)
  def test_keys_and_values_get_a_range_for_each_head_of_each_token(self, style):
    recipe = recipes.Recipe(weight=None, activation=None, cache=8)
    result = _run(style, recipe.steps(staging.model_sites(networks.config(style))))
    paths = [f'layers/0/attention/{name}' for name in ('key', 'value')]
    self.assertCountEqual(trees.inputs(result.params), paths)
    validate.validate(result.params, networks.config(style))
    self.assertEqual([result.decisions[path]['dynamic_ranges'] for path in paths], [{'bits': 8}] * 2)
    for path in paths:
      x = _operands(style)[path.partition('/0/')[2]]
      codes = trees.get(result.params, path)['quantizer'].codes(x)
      np.testing.assert_allclose(codes.scale, np.abs(x).max(-1, keepdims=True) / 127, rtol=1e-6)
    evaluate = networks.evaluator(networks.config(style), 'simulated', networks.quick_jit)
    exact, simulated = (evaluate(tree, networks.tokens(4)) for tree in (networks.params(style), result.params))
    self.assertBetween(float(jnp.mean((simulated - exact) ** 2) / jnp.mean(exact**2)), 1e-8, 1e-3)

  def test_values_have_one_range(self):
    with self.assertRaisesRegex(errors.UserError, 'values of 4 bits have those of channels, and a cache of 8 bits has'):
      recipes.Recipe(values=4, cache=8)


class OwnershipTest(parameterized.TestCase):

  def test_operands_are_owned_by_their_own_step_only(self):
    """No pattern for sites claims them, be it as wide as can be; nor do recipes."""
    result = _run('llama', [driver.Step('sites', [('.*', _ranges())])])
    self.assertCountEqual(
        trees.inputs(result.params), [site.name for site in staging.model_sites(networks.config('llama'))])
    result = _run('llama', recipes.Recipe(site_patterns=('layers/.*',)).steps(
        staging.model_sites(networks.config('llama'))))
    self.assertEmpty([path for path in trees.inputs(result.params) if not path.endswith('input')])
    result = _run('llama', [driver.Step('operands', [('.*', _ranges())])])
    self.assertCountEqual(
        trees.inputs(result.params), [f'layers/0/attention/{name}' for name in ('query', 'key', 'value')])

  def test_an_operand_without_owner_is_named(self):
    with self.assertRaisesRegex(errors.UserError, 'rules for operands: no rule claims layers/0/attention/query'):
      _run('llama', [driver.Step('operands', [('.*/value', _ranges())])])

  def test_keys_are_calibrated_behind_their_rotation(self):
    result = _run('llama', [driver.Step('operands', [('.*/key', _ranges())], every=False)])
    projected = networks.quick_jit(lambda x: x @ trees.get(networks.params('llama'), 'layers/0/attention/k/kernel'))(
        _operands('llama')['attention/input'])
    rotated = _operands('llama')['attention/key']
    self.assertGreater(np.abs(rotated - projected.reshape(rotated.shape)).max(), 0.1)
    quantizer = trees.get(result.params, 'layers/0/attention/key')['quantizer']
    np.testing.assert_allclose((quantizer.low, quantizer.high), (rotated.min(), rotated.max()), rtol=1e-5)


class RefusalsTest(absltest.TestCase):

  def test_percentiles_of_channels(self):
    for method in ('percentile', 'token_wise'):
      with self.subTest(method), self.assertRaisesRegex(errors.UserError, '^percentiles are those of a whole tensor'):
        activation_ranges.activation_ranges(calibrating.claim(), 4, method=method, per_channel=True)

  def test_symmetric_ranges_of_channels(self):
    with self.assertRaisesRegex(errors.UserError, '^ranges of channels are asymmetric'):
      activation_ranges.activation_ranges(calibrating.claim(), 4, symmetric=True, per_channel=True)

  def test_channels_that_linears_sum_over(self):
    with self.assertRaisesRegex(errors.UserError, '^attention/input: the linears that read it sum over its channels'):
      _run('llama', [driver.Step('sites', [('.*', _ranges(per_channel=True))])])


if __name__ == '__main__':
  absltest.main()
