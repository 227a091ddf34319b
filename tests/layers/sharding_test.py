"""Where arrays live.

Run with an argument, this file is the program on eight devices that its test starts.
"""

import json
import sys

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant.layers import sharding
from tests import source

_SHAPES = (), (16,), (4, 16), (16, 4), (16, 24), (4, 4), (3, 8, 5), (8, 0)


def _observe() -> dict:
  """What the functions of the module do on eight devices, as JSON values."""
  mesh = sharding.data_mesh()
  rows = np.arange(48, dtype=np.int32).reshape(16, 3)
  constrained = jax.jit(lambda x: (sharding.constrain_batch(x + 1), sharding.constrain_replicated(x + 1)))
  with jax.set_mesh(mesh):
    inside = constrained(sharding.place_rows(mesh, rows))
  outside = constrained(rows)
  placed = {
      'rows': sharding.place_rows(mesh, rows), 'whole': sharding.place_whole(mesh, rows),
      'odd': sharding.place_whole(mesh, rows[:5]), 'batch': inside[0], 'replicated': inside[1]}
  for name, array in placed.items():
    want = {'odd': rows[:5], 'batch': rows + 1, 'replicated': rows + 1}.get(name, rows)
    np.testing.assert_array_equal(array, want)
  np.testing.assert_array_equal(outside[0], rows + 1)
  shard = lambda fully: [sharding.parameter_sharding(mesh, shape, fully).shard_shape(shape) for shape in _SHAPES]
  tree = {'a': np.zeros((4, 16)), 'b': {'c': np.zeros(16)}}
  return {
      'placed': {name: array.addressable_shards[0].data.shape for name, array in placed.items()},
      'fully': shard(True), 'replicated': shard(False),
      'few': sharding.parameter_sharding(sharding.data_mesh(jax.devices()[:3]), (6, 16), True).shard_shape((6, 16)),
      'tree': jax.tree.map(lambda s: list(s.spec), sharding.tree_shardings(mesh, tree, True))}


class ShardingTest(absltest.TestCase):

  def test_eight_devices(self):
    observed = json.loads(source.output_on_eight_devices(__file__, 'observe'))
    with self.subTest('a batch is split by rows, unless the devices do not divide them'):
      self.assertEqual(observed['placed'], {
          'rows': [2, 3], 'whole': [2, 3], 'odd': [5, 3], 'batch': [2, 3], 'replicated': [16, 3]})
    with self.subTest('kernels are split along the last axis that the devices divide, vectors are not'):
      self.assertEqual(observed['fully'], [[], [16], [4, 2], [2, 4], [16, 3], [4, 4], [3, 1, 5], [1, 0]])
      self.assertEqual(observed['few'], [2, 16])
    with self.subTest('replicated parameters are whole everywhere'):
      self.assertEqual(observed['replicated'], [list(shape) for shape in _SHAPES])
    with self.subTest('trees'):
      self.assertEqual(observed['tree'], {'a': [None, sharding.DATA_AXIS], 'b': {'c': []}})

  def test_without_a_mesh_in_scope_constraints_are_no_operation(self):
    x = jnp.ones((3, 2))
    self.assertIs(sharding.constrain_batch(x), x)
    self.assertIs(sharding.constrain_replicated(x), x)


if __name__ == '__main__':
  if sys.argv[1:] == ['observe']:
    print(json.dumps(_observe()))
  else:
    absltest.main()
