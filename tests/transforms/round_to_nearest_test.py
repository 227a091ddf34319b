"""Round-to-nearest: the codes of `quantize`, the error it records, and what it leaves alone."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.calibration import sites
from jaxquant.numerics import formats
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.transforms import clip_search
from jaxquant.transforms import gptq
from jaxquant.transforms import grids
from jaxquant.transforms import round_to_nearest
from tests import calibrating

_INT4 = formats.IntFormat(4)


def _block():
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(16, 8)).astype(np.float32)
  return {'mlp': {
      'up': {'kernel': kernel, 'bias': np.ones(8, np.float32),
             'kernel_quantizer': quantizers.WeightQuantizer(_INT4), 'input': {'scale': np.ones(16, np.float32)}},
      'down': {'kernel': kernel.T.copy()}, 'zero': {'kernel': np.zeros((16, 8), np.float32)}}}


def _factory(fmt=_INT4, **options):
  return functools.partial(
      round_to_nearest.round_to_nearest, weight=quantizers.WeightQuantizer(fmt, **options))


def _claim(*names):
  return calibrating.claim(*(f'mlp/{name}' for name in names), sites=[sites.Site('mlp/input', None, ('mlp/up',))])


def _rounded(*names, factory=None, params=None):
  """(params, record) of the block with the linears called `names` rounded."""
  params, record = calibrating.apply(factory or _factory(), _claim(*names), params or _block())
  return params['mlp'], record


class RoundToNearestTest(parameterized.TestCase):

  @parameterized.parameters(
      ({},), ({'group_size': 4},), ({'axis': -1},), ({'axis': -1, 'group_size': 2},), ({'per_tensor': True},))
  def test_codes_and_recorded_error_are_those_of_quantize(self, options):
    kernel = _block()['mlp']['up']['kernel']
    want = jax.jit(lambda x: quantize.quantize(x, _INT4, **options))(kernel)
    params, record = _rounded('up', factory=_factory(**options))
    jax.tree.map(np.testing.assert_array_equal, params['up']['kernel'], want)
    rounded = np.asarray(quantize.dequantize(want), np.float64)
    np.testing.assert_allclose(
        record['mlp/up']['relative_error'], ((rounded - kernel) ** 2).sum() / (kernel**2.0).sum(), rtol=1e-5)
    np.testing.assert_allclose(record['mlp/up']['zeros'], ((rounded == 0) & (kernel != 0)).mean(), rtol=1e-6)
    self.assertGreater(record['mlp/up']['zeros'], 0)

  @parameterized.parameters(
      ({}, 'int4'), ({'group_size': 4}, 'int4 g4'), ({'axis': -1, 'group_size': 2}, 'int4 g2 by input'),
      ({'group_size': 4, 'two_level': True}, 'int4 g4 two-level'), ({'per_tensor': True}, 'int4 per tensor'))
  def test_grids_are_told_apart_by_their_names(self, options, name):
    self.assertEqual(grids.name(quantizers.WeightQuantizer(_INT4, **options)), name)

  def test_only_the_kernel_quantizer_of_training_goes(self):
    params, record = _rounded('up')
    self.assertEqual(set(params['up']), {'kernel', 'bias', 'input'})
    self.assertEqual(set(record), {'mlp/up'})
    np.testing.assert_array_equal(params['down']['kernel'], _block()['mlp']['down']['kernel'])

  def test_scales_of_the_other_axis_are_those_of_the_transpose(self):
    by_output, _ = _rounded('up', factory=_factory(formats.IntFormat(3, symmetric=False), group_size=4))
    by_input, _ = _rounded('down', factory=_factory(formats.IntFormat(3, symmetric=False), group_size=4, axis=-1))
    jax.tree.map(np.testing.assert_array_equal, by_input['down']['kernel'].transposed(), by_output['up']['kernel'])

  def test_a_kernel_of_zeros_has_no_error(self):
    params, record = _rounded('zero')
    self.assertEqual({name: float(value) for name, value in record['mlp/zero'].items()}, {
        'relative_error': 0, 'zeros': 0})
    np.testing.assert_array_equal(quantize.dequantize(params['zero']['kernel']), 0)

  def test_the_error_of_a_kernel_of_16_bits_does_not_overflow(self):
    kernel = 3 * jax.random.normal(jax.random.key(0), (256, 64))
    errors_of = [_rounded('up', params={'mlp': {'up': {'kernel': kernel.astype(dtype)}}})[1]['mlp/up']['relative_error']
                 for dtype in (jnp.float32, jnp.float16)]
    np.testing.assert_allclose(*errors_of, rtol=1e-2)

  def test_refuses_by_path_what_it_cannot_round(self):
    twice = {'mlp': {'up': {'kernel': quantize.quantize(jnp.ones((16, 8)), formats.IntFormat(3))}}}
    with self.assertRaisesRegex(errors.UserError, '^mlp/up: already quantized to int3$'):
      _rounded('up', params=twice)
    with self.assertRaisesRegex(errors.UserError, '^mlp/down: group size 16 does not divide 8 elements$'):
      _rounded('up', 'down', factory=_factory(group_size=16))

  @parameterized.parameters((gptq.gptq, 'GPTQ'), (clip_search.clip_search, 'the clip search'))
  def test_one_scale_for_a_kernel_is_for_rounding_to_nearest(self, method, name):
    factory = functools.partial(method, weight=quantizers.WeightQuantizer(_INT4, per_tensor=True))
    with self.assertRaisesRegex(errors.UserError, f'^mlp/up: {name} works with scales of outputs, inputs or groups'):
      calibrating.apply(factory, _claim('up'), _block(), [calibrating.batch({'mlp/input': jnp.ones((1, 2, 16))})])

  @parameterized.parameters(({'group_size': 4}, 'groups of 4'), ({'axis': -1}, 'those of input channels'))
  def test_one_scale_for_a_kernel_excludes_others(self, options, message):
    with self.assertRaisesRegex(errors.UserError, f'^one scale for a whole kernel excludes {message}$'):
      quantizers.WeightQuantizer(_INT4, per_tensor=True, **options)

  def test_without_a_grid_takes_that_of_the_tree(self):
    params, _ = _rounded('up', factory=round_to_nearest.round_to_nearest)
    jax.tree.map(np.testing.assert_array_equal, params['up']['kernel'], _rounded('up')[0]['up']['kernel'])
    with self.assertRaisesRegex(errors.UserError, '^mlp/down: no grid to round to'):
      _rounded('down', factory=round_to_nearest.round_to_nearest)

  def test_scales_per_input_channel_and_integer_activations_exclude_each_other(self):
    quantizer = quantizers.DynamicQuantizer(_INT4)
    for path in ('mlp/input', 'mlp/up/input'):
      params = trees.put(_block(), f'{path}/quantizer', quantizer)
      with self.assertRaisesRegex(errors.UserError, '^mlp/up: .* per input channel cannot meet integer activations'):
        _rounded('up', factory=_factory(axis=-1), params=params)
      _rounded('up', params=params)


if __name__ == '__main__':
  absltest.main()
