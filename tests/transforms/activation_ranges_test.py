"""Calibrated ranges: what each method records, and the quantizers it makes."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.calibration import sites
from jaxquant.calibration import transform as transforms
from jaxquant.numerics import formats
from jaxquant.numerics import quantizers
from jaxquant.transforms import activation_ranges
from jaxquant.transforms import dynamic_ranges
from tests import calibrating

_SITE = 'mlp/input'
_DYNAMIC = quantizers.DynamicQuantizer(formats.parse('uint8'))


def _batches():
  """Three batches of four sequences, [4, 6, 10], with an outlier in the second."""
  x = np.random.default_rng(0).normal(size=(3, 4, 6, 10)).astype(np.float32)
  x[1, 2, 3, 4] = 30
  return x


def _calibrated(batches, params=None, **options):
  """(params, record of the site) after observing `batches`."""
  factory = functools.partial(activation_ranges.activation_ranges, bits=4, **options)
  params, record = calibrating.apply(
      factory, calibrating.claim(_SITE), params or {'mlp': {}}, [calibrating.batch({_SITE: x}) for x in batches])
  return params, record[_SITE]


class ActivationRangesTest(parameterized.TestCase):

  def test_each_method_records_the_range_of_its_name(self):
    x = _batches()
    low, high = x.min((2, 3)), x.max((2, 3))
    moving = lambda a: 0.5 * (0.5 * a[0] + 0.5 * a[1]) + 0.5 * a[2]
    for options, want, tolerance in (
        ({'method': 'minmax'}, (low.min(), high.max()), 1e-7),
        ({'method': 'average'}, (low.mean(), high.mean()), 1e-6),
        ({'method': 'moving_average', 'momentum': 0.5}, (moving(low.min(1)), moving(high.max(1))), 1e-6),
        ({'method': 'percentile', 'percentile': 98}, np.percentile(x, [2, 98]), 0.02),
        ({'method': 'token_wise', 'percentile': 90},
         (np.percentile(x.min(-1), 10, method='lower'), np.percentile(x.max(-1), 90, method='higher')), 0.01)):
      with self.subTest(options['method']):
        params, record = _calibrated(x, **options)
        np.testing.assert_allclose((record['low'], record['high']), want, rtol=tolerance)
        quantizer = params['mlp']['input']['quantizer']
        self.assertIsInstance(quantizer, quantizers.ClipQuantizer)
        self.assertEqual((quantizer.low, quantizer.high, quantizer.bits), (record['low'], record['high'], 4))

  def test_a_token_that_sticks_out_sets_no_range_token_wise_and_all_of_one_channel_do(self):
    """What percentiles of values cannot tell apart: as many large values, in one token or in one channel."""
    x = np.random.default_rng(1).normal(size=(1, 4, 16, 16)).astype(np.float32)
    token, channel = x.copy(), x.copy()
    token[0, 0, 3] += 100
    channel[0, 0, :, 5] += 100
    high = lambda x, method: _calibrated(x, method=method, percentile=95)[1]['high']
    self.assertLess(high(token, 'token_wise'), 5)
    self.assertGreater(high(channel, 'token_wise'), 95)
    np.testing.assert_allclose(high(token, 'percentile'), high(channel, 'percentile'), rtol=0.3)

  def test_within_extrema_no_value_is_off_by_more_than_half_a_step(self):
    x = _batches()
    params, record = _calibrated(x)
    error = np.abs(jax.jit(params['mlp']['input']['quantizer'].__call__)(x) - x)
    self.assertLessEqual(error.max(), (record['high'] - record['low']) / 15 / 2 * 1.0001)

  def test_other_entries_of_a_specification_stay(self):
    scale = jnp.ones(10)
    params = {'mlp': {'input': {'scale': scale}, 'up': 1}}
    params, _ = _calibrated(_batches(), params, align_zero=True)
    np.testing.assert_array_equal(params['mlp']['input']['scale'], scale)
    self.assertEqual(params['mlp']['up'], 1)
    self.assertTrue(params['mlp']['input']['quantizer'].align_zero)

  @parameterized.parameters(1, -1)
  def test_symmetric_codes_are_round_of_x_over_the_farther_end_times_the_largest_code(self, sign):
    x = sign * _batches()
    params, record = _calibrated(x, symmetric=True)
    quantizer = params['mlp']['input']['quantizer']
    step = np.float32(30) / 7
    np.testing.assert_allclose((record['low'], record['high']), (-8 * step, 7 * step), rtol=1e-6)
    np.testing.assert_array_equal(quantizer.codes(jnp.asarray(x)).codes, np.clip(np.round(x / step), -8, 7))
    np.testing.assert_array_equal(quantizer(jnp.zeros(3)), np.zeros(3))

  @parameterized.parameters(*activation_ranges.METHODS)
  def test_a_constant_activation_gets_a_range_that_works(self, method):
    x = np.full((1, 2, 3, 4), 100, np.float32)
    params, record = _calibrated(x, method=method)
    self.assertLess(record['low'], record['high'])
    np.testing.assert_allclose(params['mlp']['input']['quantizer'](jnp.asarray(x[0])), x[0], rtol=0.01)

  def test_refuses_an_unknown_method(self):
    with self.assertRaisesRegex(
        errors.UserError, "unknown range calibration 'mse'; there are minmax, average, moving_average, percentile, "
        'token_wise'):
      activation_ranges.activation_ranges(calibrating.claim(_SITE), 4, method='mse')

  @parameterized.parameters(
      ({'bits': 9}, 'integer formats have 2 to 8 bits, not 9'), ({'bits': 1}, 'have 2 to 8 bits, not 1'),
      ({'percentile': 50.0}, 'percentile is 50.0'), ({'percentile': 100.1}, 'percentile is 100.1'),
      ({'percentile': float('nan')}, 'percentile is nan'), ({'momentum': 1.0}, 'momentum is 1.0'),
      ({'momentum': -0.1}, 'momentum is -0.1'))
  def test_refuses_an_argument_out_of_its_range(self, options, message):
    with self.assertRaisesRegex(errors.UserError, message):
      activation_ranges.activation_ranges(calibrating.claim(_SITE), **{'bits': 4, **options})

  @parameterized.product(
      ranges=(functools.partial(activation_ranges.activation_ranges, bits=8),
              functools.partial(dynamic_ranges.dynamic_ranges, quantizer=_DYNAMIC)),
      rounded=(True, False))
  def test_refuses_to_meet_a_kernel_with_scales_per_input_channel(self, ranges, rounded):
    """Rounded already, or chosen to be; the other axis and sites that others claim do not matter."""
    batch = calibrating.batch({_SITE: _batches()[0], 'mlp/down/input': _batches()[0]})
    claim = calibrating.claim(_SITE, sites=[sites.Site(_SITE, None, ('mlp/gate', 'mlp/up')),
                                            sites.Site('mlp/down/input', None, ('mlp/down',))])

    def params(**axes):
      grids = {name: quantizers.WeightQuantizer(_DYNAMIC.format, axis) for name, axis in axes.items()}
      kernel = jnp.ones((10, 4))
      return {'mlp': {name: {'kernel': grid.quantized(kernel)} if rounded else {
          'kernel': kernel, 'kernel_quantizer': grid} for name, grid in grids.items()}}

    calibrating.apply(ranges, claim, params(gate=-2, up=-2, down=-1), [batch])
    with self.assertRaisesRegex(errors.UserError, '^mlp/up: .* per input channel cannot meet integer activations'):
      calibrating.apply(ranges, claim, params(gate=-2, up=-1, down=-2), [batch])

  def test_observes_what_the_quantizer_will_see(self):
    """A shift and a scale at the site come first, and a quantizer that is there already would be in the way."""
    site = sites.Site('mlp/input', None, ('mlp/up',))
    inside = transforms.Batch(jnp.arange(2), {
        'mlp/input': jnp.full((2, 3, 4), 8.0), 'mlp/quantized_input': jnp.full((2, 3, 4), 2.0)})
    factory = functools.partial(activation_ranges.activation_ranges, bits=4)
    params, record = calibrating.apply(factory, calibrating.claim(_SITE, sites=[site]), {'mlp': {}}, [inside])
    self.assertAlmostEqual(record[_SITE]['high'], 2, 5)
    with self.assertRaisesRegex(errors.UserError, '^mlp/input has a quantizer already'):
      calibrating.apply(factory, calibrating.claim(_SITE), params, [inside])


if __name__ == '__main__':
  absltest.main()
