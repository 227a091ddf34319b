"""Reading and rebuilding parameter trees by path."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp

from jaxquant import errors
from jaxquant.numerics import formats
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees


class TreesTest(parameterized.TestCase):

  def test_get_follows_a_path_or_gives_the_default(self):
    tree = {'a': {'b': {'c': 1}}}
    self.assertIs(trees.get(tree, ''), tree)
    self.assertEqual(trees.get(tree, 'a/b'), {'c': 1})
    self.assertEqual(trees.get(tree, 'a/b/c'), 1)
    self.assertIsNone(trees.get(tree, 'a/x/c'))
    self.assertEqual(trees.get(tree, 'a/b/c/d', 'none'), 'none')

  def test_put_makes_a_copy_and_leaves_the_tree_alone(self):
    tree = {'a': {'b': 1}, 'z': {'y': 2}}
    self.assertEqual(trees.put(tree, 'a/c/d', 3), {'a': {'b': 1, 'c': {'d': 3}}, 'z': {'y': 2}})
    self.assertEqual(trees.put(tree, 'a/b', None), {'a': {}, 'z': {'y': 2}})
    self.assertEqual(trees.put(tree, '', 5), 5)
    self.assertIs(trees.put(tree, 'a/b', 3)['z'], tree['z'])
    self.assertEqual(tree, {'a': {'b': 1}, 'z': {'y': 2}})

  def test_linears_hold_kernels_and_inputs_hold_quantizers(self):
    kernel = jnp.ones((4, 2))
    quantizer = quantizers.DynamicQuantizer(formats.IntFormat(8))
    tree = {
        'attention': {'q': {'kernel': quantize.quantize(kernel, formats.IntFormat(4))}, 'input': {'quantizer': quantizer},
                      'query': {'quantizer': quantizer}},
        'norm': {'scale': jnp.ones(4)},
        'head': {'kernel': kernel, 'input': {'scale': jnp.ones(4)}}}
    self.assertEqual(trees.linears(tree), ('attention/q', 'head'))
    self.assertEqual(trees.inputs(tree), ('attention/input', 'attention/query'))

  def test_map_nodes_sees_nodes_whole(self):
    tree = {'a': {'kernel': quantize.quantize(jnp.ones((4, 2)), formats.IntFormat(4))}, 'b': jnp.ones(2)}
    self.assertEqual(
        trees.map_nodes(lambda path, value: (path, type(value).__name__), tree),
        {'a': {'kernel': ('a/kernel', 'QTensor')}, 'b': ('b', 'ArrayImpl')})

  def test_size_counts_elements_as_stored(self):
    tree = {'a': quantize.quantize(jnp.ones((8, 3)), formats.IntFormat(4)), 'b': jnp.ones(2)}
    self.assertEqual(trees.size(tree), 4 * 3 + 3 + 2)

  def test_matching_is_of_the_whole_path(self):
    self.assertEqual(trees.matching('a/.', ['a/b', 'a/bc', 'xa/b']), ('a/b',))

  @parameterized.parameters(jnp.nan, jnp.inf, -jnp.inf)
  def test_non_finite_values_are_named_by_path_inside_nodes_too(self, value):
    quantized = quantize.quantize(jnp.ones((4, 2)), formats.IntFormat(4))
    clip = quantizers.ClipQuantizer(jnp.float32(-1), jnp.float32(value), 4)
    tree = {'a': {'kernel': quantized, 'bias': jnp.array([0, value], jnp.bfloat16)}, 'b': {'input': {'quantizer': clip}}}
    with self.assertRaises(errors.NonFiniteError) as caught:
      trees.check_finite(tree)
    self.assertEqual(str(caught.exception), 'non-finite values in a/bias, b/input/quantizer/high')
    trees.check_finite({'a': {'kernel': quantized}, 'ids': jnp.arange(3)})


if __name__ == '__main__':
  absltest.main()
