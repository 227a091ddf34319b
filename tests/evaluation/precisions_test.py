"""Precisions of the comparison: what each makes of the kernels and sites of one tree."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.evaluation import precisions
from jaxquant.models import staging
from jaxquant.models import validate
from jaxquant.numerics import formats
from jaxquant.numerics import qtensor
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from tests import networks

_CONFIG = networks.config('opt')
_SITES = tuple(site.name for site in staging.model_sites(_CONFIG))[:-1]
_BLOCKS = trees.matching('layers/.*', trees.linears(networks.params('opt')))
_STANDARD = {precision.name: precision for precision in precisions.standard()}


def _tree(learned_weights: bool = False, bits: int = 4) -> dict:
  """The float tree with static ranges at all sites but the head's."""
  params = networks.params('opt')
  for i, name in enumerate(_SITES):
    quantizer = quantizers.ClipQuantizer(jnp.float32(-1 - i), jnp.float32(2), bits)
    params = trees.put(params, f'{name}/quantizer', quantizer)
  for path in _BLOCKS if learned_weights else ():
    quantizer = quantizers.WeightQuantizer(formats.parse('int4'))
    params = trees.put(params, f'{path}/kernel_quantizer', quantizer)
  return params


def _assert_same(got, want):
  jax.tree.map(np.testing.assert_array_equal, got, want)


class PrecisionsTest(parameterized.TestCase):

  def test_standard_precisions_and_their_names(self):
    self.assertEqual(list(_STANDARD), ['W16A16', 'W16A4 static', 'W4A16', 'W4A4 static', 'W4A4 dynamic'])
    self.assertEqual([precision.name for precision in precisions.standard(3, 8)],
                     ['W16A16', 'W16A8 static', 'W3A16', 'W3A8 static', 'W3A8 dynamic'])

  def test_precisions_are_chosen_by_name(self):
    self.assertEqual(precisions.named([]), precisions.standard())
    chosen = precisions.named(['W4A4 dynamic', 'W16A16'])
    self.assertEqual(chosen, (precisions.Precision(4, 4, 'dynamic'), precisions.Precision()))

  @parameterized.product(weights=[2, 8, 16], activations=[2, 8, 16], mode=['static', 'dynamic'])
  def test_every_precision_is_found_by_its_name(self, weights, activations, mode):
    precision = precisions.Precision(weights, activations, mode if activations < 16 else 'none')
    self.assertEqual(precisions.parse(precision.name), precision)

  @parameterized.parameters('W4A8', 'W16A16 static', 'W9A16', 'W4A1 dynamic', 'W4A4 lazy', 'A4W4', '')
  def test_what_is_no_precision_is_refused(self, name):
    with self.assertRaisesRegex(errors.UserError, f"unknown precision '{name}'; there are W16A16, W4A16, "):
      precisions.named(['W16A16', name])


class RewriteTest(parameterized.TestCase):

  @parameterized.product(name=list(_STANDARD), learned=[False, True])
  def test_kernels_and_sites_are_those_of_the_precision(self, name, learned):
    precision, before = _STANDARD[name], _tree(learned_weights=True)
    after = precisions.rewrite(before, precision, learned=learned)
    validate.validate(after, _CONFIG)
    self.assertEqual(trees.linears(after), trees.linears(before))
    for path in trees.linears(after):
      layer = trees.get(after, path)
      self.assertNotIn('kernel_quantizer', layer)
      if path in _BLOCKS and precision.weights == 4:
        want = quantize.quantize(trees.get(before, path)['kernel'], formats.parse('int4'))
        self.assertIsInstance(layer['kernel'], qtensor.QTensor)
        _assert_same(layer['kernel'], want)
      else:
        self.assertIs(layer['kernel'], trees.get(before, path)['kernel'])
    for site in _SITES:
      quantizer = trees.get(before, site)['quantizer']
      dynamic = quantizers.DynamicQuantizer(formats.parse('uint4'))
      want = {'none': {}, 'static': {'quantizer': quantizer}, 'dynamic': {'quantizer': dynamic}}[precision.mode]
      got = dict(trees.get(after, site, {}))
      if learned and precision.mode != 'static':
        np.testing.assert_array_equal(got.pop('clip'), jnp.stack([quantizer.low, quantizer.high]))
      self.assertEqual(got, want)

  def test_full_precision_removes_all_calibrated_ranges(self):
    _assert_same(precisions.rewrite(_tree(), precisions.Precision(), learned=False), networks.params('opt'))

  def test_other_entries_of_a_specification_stay(self):
    tree = trees.put(_tree(), f'{_SITES[0]}/shift', jnp.ones(16))
    for name in ('W16A16', 'W4A4 dynamic'):
      specification = trees.get(precisions.rewrite(tree, _STANDARD[name], learned=False), _SITES[0])
      np.testing.assert_array_equal(specification['shift'], jnp.ones(16))

  def test_learned_ranges_clip_full_precision_activations(self):
    ids = networks.tokens(3)
    evaluate = networks.evaluator(_CONFIG, jit=networks.quick_jit)
    logits = lambda tree: evaluate(tree, ids)
    clipped = logits(precisions.rewrite(_tree(bits=8), precisions.Precision(), learned=True))
    fine = logits(_tree(bits=8))
    self.assertLess(np.std(clipped - fine), 0.05 * np.std(fine))
    self.assertGreater(np.std(clipped - logits(networks.params('opt'))), 0.05 * np.std(fine))

  def test_dynamic_ranges_are_those_of_a_token(self):
    tree, ids = precisions.rewrite(_tree(), _STANDARD['W4A4 dynamic'], learned=False), networks.tokens(3)
    evaluate = networks.evaluator(_CONFIG, jit=networks.quick_jit)
    changed = evaluate(tree, ids.at[:, 5:].set(0))
    np.testing.assert_array_equal(changed[:, :5], evaluate(tree, ids)[:, :5])

  def test_pattern_and_group_size_of_weights(self):
    tree = precisions.rewrite(
        _tree(), precisions.Precision(3, 16), learned=False, weight_pattern='.*/mlp/.*', group_size=8)
    groups = {path: trees.get(tree, path)['kernel'].groups for path in _BLOCKS
              if isinstance(trees.get(tree, path)['kernel'], qtensor.QTensor)}
    self.assertEqual(groups, {'layers/0/mlp/up': 2, 'layers/0/mlp/down': 4})
    with self.assertRaisesRegex(errors.UserError, 'layers/0/.*: group size 5 does not divide'):
      precisions.rewrite(_tree(), precisions.Precision(3, 16), learned=False, group_size=5)

  def test_dynamic_ranges_need_no_others(self):
    _assert_same(precisions.rewrite(networks.params('opt'), _STANDARD['W4A4 dynamic'], learned=False, sites=_SITES),
                 precisions.rewrite(_tree(), _STANDARD['W4A4 dynamic'], learned=False))

  @parameterized.parameters('static', 'dynamic')
  def test_quantized_activations_without_a_quantized_site_are_refused(self, mode):
    with self.assertRaisesRegex(errors.UserError, f'^{mode} activations need calibrated or learned ranges'):
      precisions.rewrite(networks.params('opt'), precisions.Precision(16, 4, mode), learned=False)

  def test_static_ranges_that_are_missing_or_of_other_bits_are_refused_by_site(self):
    with self.assertRaisesRegex(errors.UserError, 'layers/0/.*/input: there is no static range of 8 bits'):
      precisions.rewrite(_tree(), precisions.Precision(4, 8, 'static'), learned=False)
    tree = trees.put(_tree(), f'{_SITES[2]}/quantizer', quantizers.DynamicQuantizer(formats.parse('uint4')))
    with self.assertRaisesRegex(errors.UserError, f'{_SITES[2]}: there is no static range of 4 bits'):
      precisions.rewrite(tree, precisions.Precision(4, 4, 'static'), learned=False)

  @parameterized.parameters(*_STANDARD)
  def test_weights_that_are_not_finite_are_refused_by_path(self, name):
    tree = trees.put(_tree(), f'{_BLOCKS[1]}/kernel', trees.get(_tree(), _BLOCKS[1])['kernel'].at[0, 1].set(jnp.nan))
    with self.assertRaisesRegex(errors.NonFiniteError, f'^non-finite values in {_BLOCKS[1]}/kernel$'):
      precisions.rewrite(tree, _STANDARD[name], learned=False)


if __name__ == '__main__':
  absltest.main()
