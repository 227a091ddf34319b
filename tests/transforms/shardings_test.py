"""Transforms of parameters that are split over eight devices: where their results live, and that they are the same.

Run with an argument, this file is the program on eight devices that its test starts, and that is the file it writes.
"""

import functools
import pathlib
import pickle
import re
import sys
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from jaxquant.calibration import driver
from jaxquant.layers import sharding
from jaxquant.models import staging
from jaxquant.numerics import trees
from tests import law_cases
from tests import networks
from tests import source

_CASES = ('round_to_nearest', 'gptq', 'adadim', 'smooth_quant, searched', 'awq', 'aqas', 'outlier_suppression',
          'ranges, average', 'ranges, token_wise', 'dynamic_ranges')
_STYLE = 'bert'  # has all that a fold may touch: biases, and residual branches that read norms


def _transformed(case: law_cases.Case, params: dict, batch: jax.Array) -> dict[str, Any]:
  """What becomes of `params`: the tree on the host, the decisions, and paths of arrays that are handed through."""
  sites = '|'.join(re.escape(site.name) for site in networks.foldable_sites(_STYLE))
  step = driver.Step(case.owns, [('layers/.*' if case.owns == 'linears' else sites, case.make)], every=False)
  result = driver.run(params, staging.staged(networks.config(_STYLE)), [step], [batch])
  before, after = trees.arrays(params), trees.arrays(result.params)
  return {
      'params': jax.device_get(result.params), 'decisions': result.decisions,
      'kept': {path for path, array in after.items() if array is before.get(path)},
      'shards': {path: array.sharding.shard_shape(array.shape) for path, array in after.items()}}


def _write(file: str) -> None:
  mesh = sharding.data_mesh()
  params = networks.params_with_outliers(_STYLE)
  params = jax.device_put(params, sharding.tree_shardings(mesh, params, fully=True))
  batch = sharding.place_whole(mesh, np.asarray(networks.tokens(16)))
  made = {}
  with jax.set_mesh(mesh):
    for name in _CASES:
      made[name] = _transformed(law_cases.CASES[name], params, batch)
      made[name]['declared'] = {
          path: sharding.parameter_sharding(mesh, array.shape, fully=True).shard_shape(array.shape)
          for path, array in trees.arrays(made[name]['params']).items()}
  pathlib.Path(file).write_bytes(pickle.dumps(made))


class ShardingsTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.split = source.made_on_eight_devices(__file__)

  @parameterized.parameters(*_CASES)
  def test_results_are_split_as_parameters_are_and_equal_those_of_one_device(self, name):
    split = self.split[name]
    whole = _transformed(law_cases.CASES[name], networks.params_with_outliers(_STYLE), networks.tokens(16))
    with self.subTest('every array, new ones included, is split as declared'):
      self.assertEqual(split['shards'], split['declared'])
    with self.subTest('what is not changed is not copied'):
      self.assertEqual(split['kept'], whole['kept'])
      self.assertIn('layers/0/mlp/down/bias', split['kept'])
    with self.subTest('structure, shapes, dtypes and values'):
      self.assertEqual(jax.tree.structure(split['params']), jax.tree.structure(whole['params']))
      self.assertEqual(law_cases.avals(split['params']), law_cases.avals(whole['params']))
      # Devices add up their shares of sums, and solvers amplify how that rounds; no code, however, may differ.
      close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6)
      jax.tree.map(close, split['params'], whole['params'])
    with self.subTest('decisions'):
      # An activation in the middle between two codes may take the other one, which shows in the errors of a search.
      jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-2), split['decisions'], whole['decisions'])


if __name__ == '__main__':
  if len(sys.argv) == 2 and sys.argv[1].endswith('.pickle'):
    _write(sys.argv[1])
  else:
    absltest.main()
