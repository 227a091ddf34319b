"""AdaDim: the axis that hurts less, judged against the siblings that are decided already."""

import dataclasses
import functools

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.calibration import driver
from jaxquant.models import staging
from jaxquant.numerics import formats
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.transforms import adadim
from jaxquant.transforms import round_to_nearest
from tests import networks

_WEIGHT = quantizers.WeightQuantizer(formats.parse('uint3'), group_size=8)
_CONFIG = networks.config('llama')
_MODEL = staging.staged(_CONFIG)
_BATCHES = [networks.tokens(4, seed=seed) for seed in range(2)]
_CHOOSE = driver.Step('linears', [('layers/.*', functools.partial(adadim.adadim, weight=_WEIGHT))], every=False)
_ROUND = driver.Step('linears', [('layers/.*', round_to_nearest.round_to_nearest)], every=False)


@functools.cache
def _params(outlier=0.0):
  """The network, one channel of whose attention input is `outlier` times as strong."""
  params = networks.params('llama')
  gain = params['layers']['0']['attention_norm']['scale']
  return trees.put(params, 'layers/0/attention_norm/scale', gain.at[3].mul(outlier)) if outlier else params


@functools.cache
def _run(outlier=0.0):
  return driver.run(_params(outlier), _MODEL, [_CHOOSE], _BATCHES)


def _decisions(result):
  return {path: entry['adadim'] for path, entry in result.decisions.items()}


class AdaDimTest(absltest.TestCase):

  def test_decides_by_the_recorded_errors_and_leaves_kernels_alone(self):
    result = _run(30.0)
    for path, entry in _decisions(result).items():
      found = entry['error_output_channels'], entry['error_input_channels']
      self.assertEqual(entry['axis'], int(np.argmin(found)), path)
      layer = trees.get(result.params, path)
      self.assertEqual(layer['kernel_quantizer'], dataclasses.replace(_WEIGHT, axis=(-2, -1)[entry['axis']]))
      np.testing.assert_array_equal(layer['kernel'], trees.get(_params(30.0), path)['kernel'])
    self.assertLen(result.decisions, 7)

  def test_errors_are_those_of_the_module_with_earlier_linears_rounded(self):
    """q is judged against the float module, k against the module with q rounded as decided."""
    result, block = _run(30.0), _MODEL.blocks[0][1]
    params = trees.get(_params(30.0), 'layers/0')
    stream = jax.jit(_MODEL.embed)(_params(30.0), jnp.concatenate(_BATCHES))
    x = jax.jit(block.taps)(params, stream)[1]['attention/input']
    judge = jax.jit(lambda tree: block.judge('attention/input', 'module', tree, x))
    for path in ('attention/q', 'attention/k'):
      reference = judge(params)
      kernel = trees.get(params, path)['kernel']
      rounded = [dataclasses.replace(_WEIGHT, axis=axis)(kernel) for axis in (-2, -1)]
      want = [np.sum((judge(trees.put(params, f'{path}/kernel', r)) - reference) ** 2, -1).mean() for r in rounded]
      entry = _decisions(result)[f'layers/0/{path}']
      np.testing.assert_allclose([entry['error_output_channels'], entry['error_input_channels']], want, rtol=1e-3)
      params = trees.put(params, f'{path}/kernel', rounded[entry['axis']])

  def test_along_outputs_an_outlier_row_stays_in_its_own_groups(self):
    kernel = networks.params('llama')['layers']['0']['attention']['q']['kernel']
    outlier, rows = kernel.at[3].mul(100.0), np.arange(kernel.shape[0]) != 3
    along_outputs, along_inputs = (dataclasses.replace(_WEIGHT, axis=axis) for axis in (-1, -2))
    np.testing.assert_array_equal(along_outputs(outlier)[rows], along_outputs(kernel)[rows])
    error = lambda grid: float(jnp.sum((grid(outlier) - outlier)[rows] ** 2))
    self.assertGreater(error(along_inputs), 10 * error(along_outputs))

  def test_a_rounding_step_takes_the_chosen_grid(self):
    result = driver.run(_params(30.0), _MODEL, [_CHOOSE, _ROUND], _BATCHES)
    for path, entry in _decisions(_run(30.0)).items():
      layer = trees.get(result.params, path)
      self.assertEqual(layer['kernel'].axis, (-2, -1)[entry['axis']])
      self.assertNotIn('kernel_quantizer', layer)

  def test_no_worse_than_either_axis_for_all(self):
    """Each choice is the better one behind those before it; here that holds for the block, too."""
    x = jax.jit(_MODEL.embed)(_params(30.0), jnp.concatenate(_BATCHES))
    forward = networks.quick_jit(_MODEL.blocks[0][1].forward)
    exact = forward(trees.get(_params(30.0), 'layers/0'), x)

    def error(steps):
      quantized = driver.run(_params(30.0), _MODEL, steps, _BATCHES).params
      return float(jnp.mean((forward(trees.get(quantized, 'layers/0'), x) - exact) ** 2))

    fixed = lambda axis: [driver.Step('linears', [('layers/.*', functools.partial(
        round_to_nearest.round_to_nearest, weight=dataclasses.replace(_WEIGHT, axis=axis)))], every=False)]
    adaptive = error([_CHOOSE, _ROUND])
    self.assertLess(adaptive, error(fixed(-2)))
    self.assertLess(adaptive, error(fixed(-1)))

  def test_refuses_a_search_on_no_tokens(self):
    step = _CHOOSE._replace(rules=[('layers/.*', functools.partial(adadim.adadim, weight=_WEIGHT, tokens=0))])
    with self.assertRaisesRegex(errors.UserError, '^adadim: tokens is 0; a search needs at least 1$'):
      driver.run(_params(), _MODEL, [step], _BATCHES)

  def test_refuses_two_level_scales(self):
    weight = dataclasses.replace(_WEIGHT, format=formats.parse('int3'), two_level=True)
    step = _CHOOSE._replace(rules=[('layers/.*', functools.partial(adadim.adadim, weight=weight))])
    with self.assertRaisesRegex(errors.UserError, '^adadim may choose groups of outputs, which have no two-level'):
      driver.run(_params(), _MODEL, [step], _BATCHES)

  def test_refuses_integer_activations_and_groups_that_do_not_divide_outputs(self):
    params = trees.put(_params(), 'layers/0/mlp/input/quantizer', quantizers.DynamicQuantizer(formats.parse('uint8')))
    with self.assertRaisesRegex(errors.UserError, 'mlp/gate: a kernel with scales per input channel cannot meet'):
      driver.run(params, _MODEL, [_CHOOSE], _BATCHES)
    weight = dataclasses.replace(_WEIGHT, group_size=16)  # 16 inputs, 8 outputs
    step = _CHOOSE._replace(rules=[('layers/.*', functools.partial(adadim.adadim, weight=weight))])
    with self.assertRaisesRegex(errors.UserError, 'attention/k: group size 16 does not divide 8'):
      driver.run(_params(), _MODEL, [step], _BATCHES)


if __name__ == '__main__':
  absltest.main()
