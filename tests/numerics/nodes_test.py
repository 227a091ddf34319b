"""Trees of nodes survive their description as JSON and JAX's own flattening, at clean paths."""

import json

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.numerics import formats
from jaxquant.numerics import nodes
from jaxquant.numerics import qtensor
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees


def _tree():
  """Every node type, symmetric and not, beside arrays of three dtypes, a None and an empty dict."""
  codes = np.arange(20, dtype=np.uint8)
  return {
      'q': {'kernel': qtensor.QTensor(
          codes.reshape(5, 4), np.ones((1, 4), np.float32), None, formats.IntFormat(3), -2, 10),
            'bias': np.arange(4.0)},
      'k': {'kernel': qtensor.QTensor(
          codes.reshape(10, 2), np.full((10, 2), 0.5, np.float32), codes.reshape(10, 2),
          formats.IntFormat(4, symmetric=False), -1, 4)},
      'v': {'kernel': np.ones((10, 4), jnp.bfloat16), 'kernel_quantizer': quantizers.WeightQuantizer(
          formats.IntFormat(4), group_size=5, two_level=True)},
      'inputs': {
          'clip': {'quantizer': quantizers.ClipQuantizer(jnp.float32(-1), jnp.float32(2), 4, align_zero=True)},
          'pact': {'quantizer': quantizers.PactQuantizer(jnp.float32(3), 8, signed=False)},
          'lsq': {'quantizer': quantizers.StepQuantizer(jnp.float32(0.1), 2)},
          'dynamic': {'quantizer': quantizers.DynamicQuantizer(formats.IntFormat(8, symmetric=False), group_size=2)},
          'gather': np.array([1, 0], np.int32)},
      'nothing': None,
      'empty': {},
  }


class NodesTest(parameterized.TestCase):

  def test_a_tree_is_rebuilt_from_its_description_and_its_arrays(self):
    tree, saved = _tree(), {}

    def save(path, value):
      saved[path] = value
      return str(value.dtype)

    spec = json.loads(json.dumps(nodes.encode(tree, save)))
    self.assertEqual(saved, trees.arrays(tree))

    def load(path, dtype):
      self.assertEqual(dtype, str(saved[path].dtype))
      return saved[path]

    rebuilt = nodes.decode(spec, load)
    self.assertEqual(jax.tree.structure(rebuilt), jax.tree.structure(tree))
    jax.tree.map(np.testing.assert_array_equal, rebuilt, tree)
    self.assertIsNone(rebuilt['nothing'])
    self.assertEqual(rebuilt['empty'], {})

  def test_paths_name_the_fields_that_hold_arrays(self):
    paths = set(trees.arrays(_tree()))
    self.assertContainsSubset(
        {'q/kernel/codes', 'q/kernel/scale', 'q/bias', 'k/kernel/zero_point', 'inputs/clip/quantizer/high',
         'inputs/lsq/quantizer/step', 'inputs/gather'}, paths)
    self.assertNotIn('q/kernel/zero_point', paths)

  def test_a_prefix_stands_before_every_path(self):
    seen = []
    nodes.encode(_tree()['q'], lambda path, value: seen.append(path), 'layers/0/q')
    self.assertEqual(seen, ['layers/0/q/kernel/codes', 'layers/0/q/kernel/scale', 'layers/0/q/bias'])

  def test_static_fields_are_part_of_the_structure(self):
    structures = {jax.tree.structure(quantizers.StepQuantizer(1.0, bits)) for bits in (2, 4, 4)}
    self.assertLen(structures, 2)
    through_jit = jax.jit(lambda tree: tree)(_tree())
    self.assertEqual(jax.tree.structure(through_jit), jax.tree.structure(_tree()))

  @parameterized.parameters(
      ({'__node__': 'FloatTensor', 'codes': None}, "a/b: unknown node 'FloatTensor' with fields ['codes']"),
      ({'__node__': 'StepQuantizer', 'bits': 4}, "a/b: unknown node 'StepQuantizer' with fields ['bits']"),
      ({'__node__': 'DynamicQuantizer', 'format': {'__format__': 'int8'}, 'group_size': None, 'per_tensor': False,
        'extra': 1},
       "a/b: unknown node 'DynamicQuantizer' with fields ['extra', 'format', 'group_size', 'per_tensor']"))
  def test_refuses_nodes_it_does_not_know_by_path(self, spec, message):
    with self.assertRaises(errors.CheckpointError) as caught:
      nodes.decode({'a': {'b': spec}}, lambda path, value: value)
    self.assertEqual(str(caught.exception), message)

  def test_refuses_a_format_that_is_none(self):
    spec = nodes.encode(quantizers.DynamicQuantizer(formats.IntFormat(8)))
    spec['format']['__format__'] = 'int9'
    with self.assertRaisesRegex(errors.UserError, "unknown number format 'int9'"):
      nodes.decode(spec, lambda path, value: value)

  def test_nodes_are_told_from_other_values(self):
    self.assertTrue(nodes.is_node(quantizers.DynamicQuantizer(formats.IntFormat(8))))
    self.assertFalse(any(nodes.is_node(value) for value in ({}, None, jnp.zeros(2), formats.IntFormat(8))))


if __name__ == '__main__':
  absltest.main()
