"""Channels that are zero in all of the calibration say nothing and do no harm: searches stay finite, folds exact.

They may be other than zero later, so that functions are compared on inputs for which they are.
"""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from jaxquant.calibration import transform
from jaxquant.models import staging
from jaxquant.numerics import formats
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.transforms import clip_search
from tests import calibrating
from tests import law_cases
from tests import networks

_STYLES = ('llama', 'opt')
_OUTLIER, _GROUP = 5, slice(8, 16)
_DEAD = {'channels': [3, 9], 'group': [3, *range(_GROUP.start, _GROUP.stop)], 'site': slice(None)}
_GRID = quantizers.WeightQuantizer(formats.parse('int3'), group_size=8)
_CASES = {  # the clip search without the rounding behind it
    **law_cases.CASES, 'clip_search': law_cases.CASES['clip_search']._replace(
        make=functools.partial(clip_search.clip_search, weight=_GRID))}
# Norm fusion observes nothing.
_FOLDS = [name for name, case in _CASES.items() if case.outcome is law_cases.FOLD and name != 'norm_fusion']
_SEARCHED = [name for name in _FOLDS if _CASES[name].plainer]


def _params(style):
  return networks.params(style)['layers']['0']


@functools.cache
def _block(style):
  """(block, its jitted forward, what enters it, {site: its activation} with a channel ten times as strong)."""
  model = staging.staged(networks.config(style))
  block = model.blocks[0][1]
  inputs = networks.quick_jit(model.embed)(networks.params(style), networks.tokens(8))
  x = networks.quick_jit(block.taps)(_params(style), inputs)[1]
  activations = {site.name: np.asarray(x[site.name].at[..., _OUTLIER].multiply(10.0)) for site in block.sites}
  return block, networks.quick_jit(block.forward), inputs, activations


@functools.cache
def _applied(style, case, dead):
  """(params, record) after a transform of all that it can own has seen the channels `dead` of every site at zero."""
  case = _CASES[case]
  block, _, _, activations = _block(style)
  seen = {name: x.copy() for name, x in activations.items()}
  for x in seen.values():
    x[..., _DEAD[dead]] = 0
  sites = tuple(site.name for site in block.sites if case.claimable(site))
  claim = transform.Claim(sites if case.owns == 'sites' else trees.linears(_params(style)), block)
  params, record = calibrating.apply(case.make, claim, _params(style), [calibrating.batch(seen)])
  trees.check_finite(params)
  trees.check_finite(jax.tree.map(np.asarray, record))
  return params, record


class FoldsTest(parameterized.TestCase):

  @parameterized.product(style=_STYLES, case=_FOLDS, dead=['channels', 'site'])
  def test_the_fold_is_finite_and_the_function_stays(self, style, case, dead):
    folded, record = _applied(style, case, dead)
    _, forward, inputs, _ = _block(style)
    want = forward(_params(style), inputs)
    np.testing.assert_allclose(forward(folded, inputs), want, rtol=0, atol=1e-5 * np.abs(want).max())
    for entry in record.values() if case in _SEARCHED else ():
      self.assertLessEqual(entry['error'], entry['error_before'])

  @parameterized.product(style=_STYLES, case=_SEARCHED)
  def test_a_search_leaves_sites_that_are_never_active_as_they_are(self, style, case):
    """All candidates are equally good there, and the first one is no fold."""
    folded, record = _applied(style, case, 'site')
    after = trees.arrays(folded)
    for path, value in trees.arrays(_params(style)).items():
      np.testing.assert_array_equal(after[path], value, err_msg=path)
    for entry in record.values():
      want = {key: float(key == 'largest') for key in entry if key != 'threshold'}
      self.assertEqual({key: entry[key] for key in want}, want)

  @parameterized.parameters(*_STYLES)
  def test_outlier_suppression_neither_shifts_nor_scales_a_dead_channel(self, style):
    folded, record = _applied(style, 'outlier_suppression', 'channels')
    for module in ('attention', 'mlp'):
      self.assertGreater(record[f'{module}/input']['scaled'], 0)
      for key, value in _params(style)[f'{module}_norm'].items():
        changed = np.asarray(folded[f'{module}_norm'][key] != value)
        self.assertFalse(changed[_DEAD['channels']].any())
        self.assertTrue(changed[_OUTLIER])


class LinearsTest(parameterized.TestCase):

  @parameterized.product(style=_STYLES, dead=list(_DEAD))
  def test_adadim_decides_by_finite_errors_and_groups_inputs_where_none_is_active(self, style, dead):
    chosen, record = _applied(style, 'adadim', dead)
    for path, entry in record.items():
      found = [entry['error_output_channels'], entry['error_input_channels']]
      self.assertEqual(entry['axis'], np.argmin(found))
      self.assertEqual(found == [0, 0], dead == 'site', path)
      layer = trees.get(chosen, path)
      self.assertEqual(layer['kernel_quantizer'].axis, (-2, -1)[entry['axis']])
      np.testing.assert_array_equal(layer['kernel'], trees.get(_params(style), path)['kernel'])

  @parameterized.product(style=_STYLES, dead=list(_DEAD))
  def test_the_clip_search_clamps_no_group_that_is_never_active(self, style, dead):
    clamped, record = _applied(style, 'clip_search', dead)
    for path, entry in record.items():
      changed = trees.get(clamped, path)['kernel'] != trees.get(_params(style), path)['kernel']
      self.assertEqual(changed[_GROUP].any(), dead == 'channels', path)
      self.assertEqual(changed[: _GROUP.start].any(), dead != 'site', path)
      self.assertEqual(entry['error_clipped'] < entry['error_unclipped'], dead != 'site')
      if dead == 'site':
        self.assertEqual(entry, {'clipped': 1, 'error_clipped': 0, 'error_unclipped': 0, 'tokens': 64})


if __name__ == '__main__':
  absltest.main()
