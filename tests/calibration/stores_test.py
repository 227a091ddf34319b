"""Sources and stores: a tree taken apart into blocks is the same tree when it is put together again."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant.calibration import stores
from jaxquant.models import staging
from jaxquant.numerics import formats
from jaxquant.numerics import quantize
from jaxquant.numerics import trees
from tests import networks

_LAYERS = 3


def _source(style):
  return stores.InMemory(networks.params(style, _LAYERS), staging.staged(networks.config(style, layers=_LAYERS)))


class InMemoryTest(parameterized.TestCase):

  @parameterized.parameters(*networks.STYLES)
  def test_blocks_together_are_the_tree_and_share_its_arrays(self, style):
    params, source = networks.params(style, _LAYERS), _source(style)
    parts = {path: source.load(path) for path in ('', *(f'layers/{i}' for i in range(_LAYERS)))}
    leaves = [leaf for part in parts.values() for leaf in jax.tree.leaves(part)]
    self.assertCountEqual(map(id, leaves), map(id, jax.tree.leaves(params)))
    self.assertEmpty(trees.get(parts[''], 'layers'))
    for finished in ({}, parts):
      made = source.assemble(finished)
      self.assertEqual(jax.tree.structure(made), jax.tree.structure(params))
      jax.tree.map(self.assertIs, made, params)

  def test_finished_blocks_take_the_place_of_float_ones(self):
    params, source = networks.params('llama', _LAYERS), _source('llama')
    kernel = quantize.quantize(params['head']['kernel'], formats.IntFormat(4))
    root = trees.put(source.load(''), 'head/kernel', kernel)
    made = source.assemble({'layers/1': {'own': jnp.ones(2)}, '': root})
    self.assertIs(made['head']['kernel'], kernel)
    np.testing.assert_array_equal(made['layers']['1']['own'], 1)
    self.assertEqual(list(made['layers']['1']), ['own'])
    for path in ('layers/0', 'layers/2', 'embedding'):
      jax.tree.map(self.assertIs, trees.get(made, path), trees.get(params, path))

  def test_abstract_tells_shapes_without_arrays(self):
    abstract = _source('opt').abstract()
    self.assertTrue(all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(abstract)))
    self.assertEqual(trees.linears(abstract), trees.linears(networks.params('opt', _LAYERS)))

  def test_is_a_source_and_a_plain_tree_is_none(self):
    self.assertIsInstance(_source('llama'), stores.Source)
    self.assertNotIsInstance(networks.params('llama', _LAYERS), stores.Source)

  def test_nowhere_keeps_nothing(self):
    store = stores.Nowhere()
    store.save('layers/0', {'x': jnp.ones(1)}, {})
    self.assertIsNone(store.finished('layers/0'))


if __name__ == '__main__':
  absltest.main()
