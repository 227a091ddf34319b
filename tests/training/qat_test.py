"""What training quantizes: rules, starting ranges, ranges kept valid."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.models import staging
from jaxquant.models import validate
from jaxquant.numerics import formats
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.training import qat
from tests import networks

_MODEL = networks.config('llama')
_NAMES = tuple(site.name for site in staging.model_sites(_MODEL))
_BLOCK_SITES = _NAMES[:-1]


def _prepare(start=None, params=None, **options) -> dict:
  return qat.prepare(networks.params('llama') if params is None else params, qat.QATConfig(**options), _NAMES, start)


def _without_quantizers(params: dict) -> dict:
  """The arrays of `params` that are not those of quantizers, by path."""
  return {path: leaf for path, leaf in trees.arrays(params).items() if '/quantizer/' not in path}


class PrepareTest(parameterized.TestCase):

  def test_only_the_sites_of_the_blocks_are_quantized_by_default(self):
    params = _prepare()
    validate.validate(params, _MODEL)
    self.assertCountEqual([path for path in trees.inputs(params)], _BLOCK_SITES)
    jax.tree.map(np.testing.assert_array_equal, _without_quantizers(params), trees.arrays(networks.params('llama')))

  def test_the_first_pattern_that_matches_gives_the_width(self):
    params = _prepare(ranges=(('.*/mlp/input', 1.5), ('layers/0/.*', 2.5), ('head.*', 4)), bits=3)
    widths = {path: trees.get(params, path)['quantizer'] for path in trees.inputs(params)}
    want = dict.fromkeys(_BLOCK_SITES, 2.5) | {'layers/0/mlp/input': 1.5, 'head/input': 4}
    self.assertEqual({path: (float(q.low), float(q.high), q.bits) for path, q in widths.items()},
                     {path: (-width, width, 3) for path, width in want.items()})

  def test_sites_without_a_pattern_are_left_out(self):
    self.assertEqual(trees.inputs(_prepare(ranges=(('.*/down/input', 1.0),))), ('layers/0/mlp/down/input',))

  def test_without_patterns_and_bits_the_tree_stays_as_it_is(self):
    self.assertIs(_prepare(params=networks.params('llama'), ranges=()), networks.params('llama'))

  @parameterized.parameters(
      (dict(method='clip', align_zero=True), quantizers.ClipQuantizer(-2.0, 3.0, 4, True), (-2, 3)),
      (dict(method='pact'), quantizers.PactQuantizer(3.0, 4), (-3, 3)),
      (dict(method='lsq', bits=3), quantizers.StepQuantizer(1.0, 3), (-4, 3)))
  def test_methods_start_from_given_ends(self, options, quantizer, ends):
    params = _prepare(start={'layers/0/mlp/input': (-2.0, 3.0)}, **options)
    self.assertEqual(trees.get(params, 'layers/0/mlp/input/quantizer'), quantizer)
    self.assertAlmostEqual(float(qat.ranges(params)['layers/0/mlp/input'][0]), ends[0])
    self.assertAlmostEqual(float(qat.ranges(params)['layers/0/mlp/input'][1]), ends[1])

  def test_range_of_an_activation_that_is_zero_is_valid_nevertheless(self):
    for method in qat.METHODS:
      low, high = qat.ranges(_prepare(start={_NAMES[0]: (0.0, 0.0)}, method=method))[_NAMES[0]]
      self.assertLess(low, high)

  def test_other_entries_of_a_specification_stay(self):
    params = trees.put(networks.params('llama'), 'layers/0/mlp/input/shift', jnp.ones(16))
    self.assertEqual(set(trees.get(_prepare(params=params), 'layers/0/mlp/input')), {'shift', 'quantizer'})

  def test_kernels_are_rounded_on_request(self):
    params = _prepare(weight_bits=3, weight_pattern='.*/mlp/.*', weight_group_size=8)
    quantizer = quantizers.WeightQuantizer(formats.parse('int3'), group_size=8)
    found = {path: trees.get(params, path).get('kernel_quantizer') for path in trees.linears(params)}
    self.assertEqual(found, {path: quantizer if '/mlp/' in path else None for path in found})
    validate.validate(params, _MODEL)

  def test_abstract_trees_are_prepared_too(self):
    abstract = jax.eval_shape(functools.partial(qat.prepare, config=qat.QATConfig(weight_bits=4), site_names=_NAMES),
                              validate.abstract_params(_MODEL))
    concrete = _prepare(weight_bits=4)
    self.assertEqual(jax.tree.structure(abstract), jax.tree.structure(concrete))

  @parameterized.parameters(
      (dict(ranges=(('.*', 1.0), ('.*/mlp/input', 2.0))), r"qat.ranges: '\.\*/mlp/input' wins none of 5 names"),
      (dict(ranges=(('layers/7/.*', 1.0),)), "qat.ranges: 'layers/7/.*' wins none"),
      (dict(weight_bits=4, weight_pattern='mlp'), "qat.weight_pattern 'mlp' matches no linear layer"),
      (dict(weight_bits=4, weight_group_size=5), 'layers/0/.*: group size 5 does not divide 16 elements'))
  def test_patterns_and_groups_that_do_not_fit_are_named(self, options, message):
    with self.assertRaisesRegex(errors.UserError, message):
      _prepare(**options)

  def test_codes_cannot_be_trained(self):
    params = networks.params('llama')
    kernel = quantize.quantize(params['layers']['0']['mlp']['up']['kernel'], formats.parse('int4'))
    with self.assertRaisesRegex(errors.UserError, 'float weights, but layers/0/mlp/up holds integer codes'):
      _prepare(params=trees.put(params, 'layers/0/mlp/up/kernel', kernel))

  @parameterized.parameters(
      (dict(method='minmax'), "qat.method is 'minmax'; there are clip, lsq, pact"),
      (dict(bits=9), 'qat.bits must be 2 to 8, not 9'), (dict(bits=1), 'qat.bits must be 2 to 8, not 1'),
      (dict(ranges=(('.*', 0.0),)), 'half widths must be positive'))
  def test_mistakes_in_the_configuration_are_named(self, options, message):
    with self.assertRaisesRegex(errors.UserError, message):
      qat.QATConfig(**options)


class RangesTest(parameterized.TestCase):

  def test_projection_repairs_ranges_and_nothing_else(self):
    params = _prepare()
    broken = {
        _NAMES[0]: (quantizers.ClipQuantizer(jnp.float32(2), jnp.float32(-1), 4), (0.5, 0.5)),
        _NAMES[1]: (quantizers.PactQuantizer(jnp.float32(-1), 4), (0, 0)),
        _NAMES[2]: (quantizers.StepQuantizer(jnp.float32(-1), 4), (0, 0))}
    for name, (quantizer, _) in broken.items():
      params = trees.put(params, f'{name}/quantizer', quantizer)
    projected = qat.project(params)
    for name, (_, want) in broken.items():
      low, high = qat.ranges(projected)[name]
      self.assertLess(low, high)
      np.testing.assert_allclose([low, high], want, atol=1e-4)
    self.assertEqual(jax.tree.structure(projected), jax.tree.structure(params))
    untouched = [path for path in trees.arrays(params) if not path.startswith(tuple(broken))]
    for path in untouched:
      np.testing.assert_array_equal(trees.arrays(projected)[path], trees.arrays(params)[path])

  def test_ranges_are_those_in_use_and_dynamic_ones_have_none(self):
    params = {
        'a': {'quantizer': quantizers.ClipQuantizer(jnp.float32(-1), jnp.float32(2.1), 2, align_zero=True)},
        'b': {'quantizer': quantizers.PactQuantizer(jnp.float32(2), 4, signed=False)},
        'c': {'quantizer': quantizers.DynamicQuantizer(formats.parse('uint4'))},
        'd': {'shift': jnp.ones(3)}}
    ranges = qat.ranges(params)
    self.assertEqual(set(ranges), {'a', 'b'})
    np.testing.assert_allclose(ranges['a'], [-3.1 / 3, 2 * 3.1 / 3], rtol=1e-6)
    np.testing.assert_allclose(ranges['b'], [0, 2])


if __name__ == '__main__':
  absltest.main()
