"""What searches compare at the sites of models: against what the blocks' own taps and kernels say."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from jaxquant import errors
from jaxquant.calibration import driver
from jaxquant.calibration import sites as sites_lib
from jaxquant.calibration import transform as transforms
from jaxquant.models import staging
from jaxquant.numerics import formats
from jaxquant.numerics import qtensor
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.transforms import adadim
from jaxquant.transforms import aqas
from jaxquant.transforms import awq
from jaxquant.transforms import outlier_suppression
from jaxquant.transforms import round_to_nearest
from tests import networks

_WEIGHT = quantizers.WeightQuantizer(formats.parse('uint4'))
_ACTIVATION = quantizers.DynamicQuantizer(formats.parse('uint8'))
_MODULES = (('attention', 'o'), ('mlp', 'down'))


@functools.cache
def _observed(style):
  """(block, its params, the activations at its tap points)."""
  model, params = staging.staged(networks.config(style)), networks.params(style)
  path, block = model.blocks[0]
  x = networks.quick_jit(model.embed)(params, networks.tokens(3))
  return block, trees.get(params, path), networks.quick_jit(block.taps)(trees.get(params, path), x)[1]


def _product(layer, x):
  return np.asarray(x) @ np.asarray(layer['kernel']) + np.asarray(layer.get('bias', 0))


class JudgesTest(parameterized.TestCase):

  @parameterized.product(style=list(networks.STYLES), module=_MODULES)
  def test_inner_and_module_are_what_the_last_linear_reads_and_puts_out(self, style, module):
    module, last = module
    block, params, activations = _observed(style)
    judged = lambda scope: block.judge(f'{module}/input', scope, params, activations[f'{module}/input'])
    read = activations[f'{module}/{last}/input']
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    close(judged('inner'), read)
    close(judged('module'), _product(params[module][last], read))

  @parameterized.parameters(*networks.STYLES)
  def test_linears_are_compared_side_by_side(self, style):
    block, params, activations = _observed(style)
    for site in block.sites:
      want = [_product(trees.get(params, path), activations[site.name]) for path in site.consumers]
      got = block.judge(site.name, 'linears', params, activations[site.name])
      np.testing.assert_allclose(got, np.concatenate(want, axis=-1), rtol=1e-5, atol=1e-5)

  @parameterized.parameters(*sites_lib.SCOPES)
  def test_the_last_linear_of_a_module_is_itself_in_every_scope(self, scope):
    block, params, activations = _observed('llama')
    for module, last in _MODULES:
      name = f'{module}/{last}/input'
      got = block.judge(name, scope, params, activations[name])
      np.testing.assert_allclose(got, _product(params[module][last], activations[name]), rtol=1e-5, atol=1e-5)


class HeadTest(parameterized.TestCase):

  def _run(self, style, *steps):
    return driver.run(
        networks.params(style), staging.staged(networks.config(style)), steps, [networks.tokens(4)])

  @parameterized.parameters(awq.awq, aqas.aqas, outlier_suppression.outlier_suppression)
  def test_searches_reach_the_head(self, method):
    told = {} if method is awq.awq else {'activation': _ACTIVATION}
    fold = functools.partial(method, weight=_WEIGHT, candidates=3, **told)
    entry = next(iter(self._run(
        'llama', driver.Step('sites', [('head/input', fold)], every=False)).decisions['head/input'].values()))
    self.assertLessEqual(entry['error'], entry['error_before'])

  def test_adadim_chooses_an_axis_for_the_head(self):
    grid = quantizers.WeightQuantizer(formats.parse('uint3'), group_size=8)
    result = self._run(
        'llama', driver.Step('linears', [('head', functools.partial(adadim.adadim, weight=grid))], every=False),
        driver.Step('linears', [('head', round_to_nearest.round_to_nearest)], every=False))
    self.assertIsInstance(result.params['head']['kernel'], qtensor.QTensor)
    self.assertIn(result.decisions['head']['adadim']['axis'], (0, 1))

  def test_the_table_that_a_tied_head_reads_is_left_alone(self):
    """A scale folded into it would change what tokens are embedded as."""
    fold = driver.Step('sites', [('head/input', functools.partial(awq.awq, weight=_WEIGHT))], every=False)
    with self.assertRaisesRegex(errors.UserError, '^head/input: embedding is looked up row by row, too'):
      self._run('opt', fold)
    choose = driver.Step('linears', [('embedding', functools.partial(adadim.adadim, weight=_WEIGHT))], every=False)
    with self.assertRaisesRegex(errors.UserError, '^embedding: the head reads this table transposed'):
      self._run('opt', choose)

  @parameterized.parameters(adadim.adadim, awq.awq)
  def test_a_block_without_a_judge_is_named_by_what_was_to_be_judged(self, method):
    site = sites_lib.Site('up/input', 'norm', ('up',))
    block = sites_lib.Block((site,), None, None)
    claim = transforms.Claim(('up',) if method is adadim.adadim else ('up/input',), block)
    with self.assertRaisesRegex(errors.UserError, '^up.*: its block has no judge'):
      method(claim, _WEIGHT)


if __name__ == '__main__':
  absltest.main()
