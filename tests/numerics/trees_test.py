"""Reading and rebuilding parameter trees by path."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.numerics import formats
from jaxquant.numerics import qtensor
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees


def _quantized():
  """A kernel of 8 inputs and 3 outputs in 4 bits."""
  return qtensor.QTensor(
      np.zeros((4, 3), np.uint8), np.ones((1, 3), np.float32), None, formats.IntFormat(4), -2, 8)


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

  def test_without_takes_an_entry_from_all_linears(self):
    tree = {'a': {'kernel': 1, 'bias': 2}, 'b': {'c': {'kernel': 3}}, 'd': {'bias': 4}}
    self.assertEqual(trees.without(tree, 'bias'), {'a': {'kernel': 1}, 'b': {'c': {'kernel': 3}}, 'd': {'bias': 4}})

  def test_linears_hold_kernels_and_inputs_hold_quantizers(self):
    quantizer = quantizers.DynamicQuantizer(formats.IntFormat(8))
    tree = {
        'attention': {'q': {'kernel': _quantized()}, 'input': {'quantizer': quantizer},
                      'query': {'quantizer': quantizer}},
        'norm': {'scale': np.ones(4)},
        'head': {'kernel': np.ones((4, 2)), 'input': {'scale': np.ones(4)}}}
    self.assertEqual(trees.linears(tree), ('attention/q', 'head'))
    self.assertEqual(trees.inputs(tree), ('attention/input', 'attention/query'))

  def test_map_nodes_sees_nodes_whole(self):
    tree = {'a': {'kernel': _quantized()}, 'b': np.ones(2)}
    self.assertEqual(
        trees.map_nodes(lambda path, value: (path, type(value).__name__), tree),
        {'a': {'kernel': ('a/kernel', 'QTensor')}, 'b': ('b', 'ndarray')})

  def test_size_counts_elements_as_stored(self):
    tree = {'a': _quantized(), 'b': np.ones(2)}
    self.assertEqual(trees.size(tree), 4 * 3 + 3 + 2)

  def test_matching_is_of_the_whole_path(self):
    self.assertEqual(trees.matching('a/.', ['a/b', 'a/bc', 'xa/b']), ('a/b',))

  @parameterized.parameters(jnp.nan, jnp.inf, -jnp.inf)
  def test_non_finite_values_are_named_by_path_inside_nodes_too(self, value):
    clip = quantizers.ClipQuantizer(jnp.float32(-1), jnp.float32(value), 4)
    bias = jnp.array([0, value], jnp.bfloat16)
    tree = {'a': {'kernel': _quantized(), 'bias': bias}, 'b': {'input': {'quantizer': clip}}}
    with self.assertRaises(errors.NonFiniteError) as caught:
      trees.check_finite(tree)
    self.assertEqual(str(caught.exception), 'non-finite values in a/bias, b/input/quantizer/high')
    trees.check_finite({'a': {'kernel': _quantized()}, 'ids': np.arange(3)})
    jax.eval_shape(trees.check_finite, {'bias': bias})  # which has no values


if __name__ == '__main__':
  absltest.main()
