"""Methods on functions and trees that know nothing of this package's models: nested dicts, that of an NNX model too."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.calibration import driver
from jaxquant.calibration import sites
from jaxquant.layers import inputs
from jaxquant.layers import linear
from jaxquant.models import functions
from jaxquant.numerics import formats
from jaxquant.numerics import qtensor
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.transforms import aqas
from jaxquant.transforms import dynamic_ranges
from jaxquant.transforms import gptq
from jaxquant.transforms import round_to_nearest
from jaxquant.transforms import smooth_quant
from tests import calibrating
from tests import networks

_WEIGHT = quantizers.WeightQuantizer(formats.parse('dint4'))
_ACTIVATION = quantizers.DynamicQuantizer(formats.parse('uint8'))
_SITES = [sites.Site('hidden/input', 'norm', ('hidden/gate', 'hidden/up'), shifts=True),
          sites.Site('down/input', 'hidden/up', ('down',))]
_MIXER = [sites.Site('mixer/input', None, ('query', 'key', 'value'), opens_attention=True),
          sites.Site('out/input', 'value', ('out',))]


class _Module(nnx.Module):
  """A gated MLP behind a norm, as an NNX user would write it."""

  def __init__(self, rngs):
    self.norm = nnx.LayerNorm(16, rngs=rngs)
    self.hidden = nnx.Dict(gate=nnx.Linear(16, 48, rngs=rngs), up=nnx.Linear(16, 48, rngs=rngs))
    self.down = nnx.Linear(48, 16, rngs=rngs)

  def __call__(self, x):
    h = self.norm(x)
    return self.down(jax.nn.silu(self.hidden['gate'](h)) * self.hidden['up'](h))


def _forward(params, x):
  """The same function of a nested dict."""
  centred = x - jnp.mean(x, -1, keepdims=True)
  h = centred * jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-6)
  h = h * params['norm']['scale'] + params['norm']['bias']
  shared = inputs.prepare(params['hidden'].get('input'), h)
  gate, up = (linear.linear(params['hidden'][name], shared) for name in ('gate', 'up'))
  a = jax.nn.silu(gate) * up
  return linear.linear(params['down'], a), {'hidden/input': h, 'down/input': a}


def _mix(params, x):
  """An attention that calls nothing by that name, up to what its last linear reads."""
  shared = inputs.prepare(trees.get(params, 'mixer/input'), x)
  query, key, value = (linear.linear(params[name], shared) for name in ('query', 'key', 'value'))
  return jax.nn.softmax(query @ jnp.swapaxes(key, -1, -2) / 4) @ value


def _mixer(params, x):
  mixed = _mix(params, x)
  return linear.linear(params['out'], mixed), {'mixer/input': x, 'out/input': mixed}


@functools.cache
def _model():
  module = _Module(nnx.Rngs(0))
  module.norm.scale[...] = module.norm.scale[...].at[5].set(40.0)
  return module


def _params():
  return nnx.to_pure_dict(nnx.split(_model())[1])


def _batches():
  return list(jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 10, 16)), jnp.float32))


def _steps(*folds):
  quantize = functools.partial(dynamic_ranges.dynamic_ranges, quantizer=_ACTIVATION)
  rounding = gptq.gptq if folds else round_to_nearest.round_to_nearest
  return [*(driver.Step('sites', [('.*', fold)]) for fold in folds), driver.Step('sites', [('.*', quantize)]),
          driver.Step('linears', [('.*', functools.partial(rounding, weight=_WEIGHT))], schedule='sequential')]


class FunctionsTest(parameterized.TestCase):

  def test_the_dict_of_an_nnx_state_is_the_same_function(self):
    x = _batches()[0]
    np.testing.assert_allclose(_forward(_params(), x)[0], _model()(x), rtol=1e-4, atol=1e-5)

  def test_aqas_then_gptq_on_the_dint_grid_beats_rounding(self):
    model = functions.staged(_forward, _SITES)
    aqas_w4a8 = functools.partial(aqas.aqas, weight=_WEIGHT, activation=_ACTIVATION)
    forward = networks.quick_jit(lambda params: jnp.stack([_forward(params, x)[0] for x in _batches()]))
    (rounded, error_rounded), (methods, error) = (
        calibrating.quantized(_params(), model, steps, _batches(), forward) for steps in (_steps(), _steps(aqas_w4a8)))
    for path in trees.linears(_params()):
      for result in (rounded, methods):
        self.assertIsInstance(trees.get(result.params, path)['kernel'], qtensor.QTensor)
    self.assertLess(error, error_rounded / 2)

  def test_refuses_a_shared_site_whose_specification_the_function_does_not_read(self):
    def forward(params, x):
      gate, up = (linear.linear(params['hidden'][name], x) for name in ('gate', 'up'))
      a = jax.nn.silu(gate) * up
      return linear.linear(params['down'], a), {'hidden/input': x, 'down/input': a}

    quantize = functools.partial(dynamic_ranges.dynamic_ranges, quantizer=_ACTIVATION)
    model = functions.staged(forward, _SITES)
    with self.assertRaisesRegex(
        errors.UserError, r"^hidden/input: the function does not read .* inputs.prepare\(params\['hidden'\]"):
      driver.run(_params(), model, [driver.Step('sites', [('.*', quantize)])], _batches())
    driver.run(_params(), model, [driver.Step('sites', [('down/input', quantize)], every=False)], _batches())

  @parameterized.parameters(
      (sites.Site('down/input', 'hidden/gate', ('down',)),), (sites.Site('hidden/input', 'norm', ('hidden/up',)),))
  def test_refuses_folds_that_change_the_function(self, site):
    """A producer behind a nonlinearity, and a reader that is not named."""
    fold = driver.Step('sites', [('.*', smooth_quant.smooth_quant)])
    with self.assertRaisesRegex(errors.UserError, f'^a fold at one of {site.name} has changed .* by [0-9.]+%: a site'):
      driver.run(_params(), functions.staged(_forward, [site]), [fold], _batches())
    driver.run(_params(), functions.staged(_forward, _SITES), [fold], _batches())

  def test_a_block_records_sites_before_and_behind_their_specifications(self):
    block = functions.block(_forward, _SITES)
    x, quantizer = _batches()[0], quantizers.ClipQuantizer(jnp.float32(-1), jnp.float32(1), 4)
    params = trees.put(_params(), 'hidden/input/quantizer', quantizer)
    y, activations = block.taps(params, x)
    np.testing.assert_array_equal(y, block.forward(params, x))
    np.testing.assert_array_equal(activations['hidden/quantized_input'], quantizer(activations['hidden/input']))
    np.testing.assert_array_equal(activations['down/quantized_input'], activations['down/input'])

  def test_searches_are_judged_by_the_linears_that_read_the_site(self):
    block, params = functions.block(_forward, _SITES), _params()
    h = block.taps(params, _batches()[0])[1]['hidden/input']
    want = [h @ params['hidden'][name]['kernel'] + params['hidden'][name]['bias'] for name in ('gate', 'up')]
    np.testing.assert_allclose(
        block.judge('hidden/input', 'module', params, h), jnp.concatenate(want, axis=-1), rtol=1e-5, atol=1e-5)

  def test_a_judge_of_its_own_says_what_an_attention_compares(self):
    rng = np.random.default_rng(1)
    params = {name: {'kernel': jnp.asarray(rng.normal(size=(16, 16)) / 4, jnp.float32)}
              for name in ('query', 'key', 'value', 'out')}
    block, x = functions.block(_mixer, _MIXER, {('mixer/input', 'inner'): _mix}), _batches()[0]
    np.testing.assert_array_equal(block.judge('mixer/input', 'inner', params, x), _mix(params, x))
    side_by_side = jnp.concatenate([x @ params[name]['kernel'] for name in ('query', 'key', 'value')], -1)
    np.testing.assert_allclose(block.judge('mixer/input', 'linears', params, x), side_by_side, rtol=1e-5, atol=1e-5)

  @parameterized.parameters(
      ({}, "^mixer/input opens an attention: judges\\['mixer/input', 'inner'\\] is to compute its mix$"),
      ({('mixer', 'inner'): _mix}, "^a judge of 'mixer' in 'inner', which is no site or none of the scopes linears, "),
      ({('mixer/input', 'outer'): _mix}, "^a judge of 'mixer/input' in 'outer', which is no site"))
  def test_refuses_an_attention_without_a_judge_and_a_judge_of_nothing(self, judges, message):
    with self.assertRaisesRegex(errors.UserError, message):
      functions.staged(_mixer, _MIXER, judges)


if __name__ == '__main__':
  absltest.main()
