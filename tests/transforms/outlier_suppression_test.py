"""Outlier Suppression+: shifts, thresholds and what they are judged by."""

import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.calibration import sites
from jaxquant.numerics import formats
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.transforms import outlier_suppression
from tests import calibrating

_FEATURES = 32
_SITE = sites.Site('up/input', 'norm', ('up',), shifts=True)
_GATED = sites.Site('input', 'norm', ('gate', 'up'), shifts=True)
_WEIGHT = quantizers.WeightQuantizer(formats.parse('uint4'))
_ACTIVATION = quantizers.DynamicQuantizer(formats.parse('uint4'), per_tensor=True)
_FACTORY = functools.partial(outlier_suppression.outlier_suppression, weight=_WEIGHT, activation=_ACTIVATION)


def _judge(name, scope, params, x):
  """What the linears that read `name` put out; in the scope `inner` of two, the first gates the second."""
  specification = trees.get(params, name) or {}
  x = (x - specification.get('shift', 0)) / specification.get('scale', 1)
  if 'quantizer' in specification:
    x = specification['quantizer'](x)
  readers = (name.removesuffix('/input'),) if name == _SITE.name else _GATED.consumers
  outputs = [x @ params[path]['kernel'] + params[path].get('bias', 0) for path in readers]
  if scope == 'linears':
    return jnp.concatenate(outputs, axis=-1)
  assert scope == 'inner' and len(outputs) == 2, (name, scope)
  return jax.nn.silu(outputs[0]) * outputs[1]


@functools.cache
def _activations(shifted=True):
  """[4, 64, features] with two channels far from zero, as in OPT-66B: (-97, -58) and (5.7, 43), a tenth as large."""
  x = np.random.default_rng(0).normal(size=(4, 64, _FEATURES)).astype(np.float32)
  if shifted:
    x[..., 5] = np.random.default_rng(1).uniform(-9.7, -5.8, x.shape[:2])
    x[..., 20] = np.random.default_rng(2).uniform(0.57, 4.3, x.shape[:2])
  return x


@functools.cache
def _params():
  kernel = lambda seed: {'kernel': jnp.asarray(np.random.default_rng(seed).normal(size=(_FEATURES, 24)), jnp.float32)}
  return {'norm': {'scale': jnp.ones(_FEATURES), 'bias': jnp.zeros(_FEATURES)}, 'up': kernel(3), 'gate': kernel(4)}


def _apply(factory=_FACTORY, site=_SITE, x=None):
  parts = np.split(_activations() if x is None else x, 4)
  batches = [calibrating.batch({site.name: part}, i) for i, part in enumerate(parts)]
  claim = calibrating.claim(site.name, sites=[site], judge=_judge)
  params, record = calibrating.apply(factory, claim, _params(), batches)
  return params, record[site.name]


class OutlierSuppressionTest(parameterized.TestCase):

  def test_shift_and_scale_are_those_of_the_paper(self):
    params, record = _apply()
    x = _activations()
    centre = (x.max((0, 1)) + x.min((0, 1))) / 2
    most = np.abs(x - centre).max((0, 1))
    scale = np.maximum(1, most / record['threshold'])
    np.testing.assert_allclose(params['norm']['scale'], 1 / scale, rtol=1e-5)
    np.testing.assert_allclose(params['norm']['bias'], -centre / scale, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(params['up']['kernel'], _params()['up']['kernel'] * scale[:, None], rtol=1e-5)
    np.testing.assert_allclose(params['up']['bias'], centre @ _params()['up']['kernel'], rtol=1e-4)
    np.testing.assert_allclose(record['shift'], np.abs(centre).max(), rtol=1e-5)
    self.assertEqual(record['scaled'], (scale > 1).sum())

  def test_shifts_help_and_thresholds_help_more(self):
    """Output error of neither, of the shift, of both: in the paper's order."""
    _, record = _apply()
    self.assertLess(record['error_shifted'], record['error_before'] / 2)
    self.assertLess(record['error'], record['error_shifted'])
    _, shift_only = _apply(functools.partial(_FACTORY, scale=False))
    _, scale_only = _apply(functools.partial(_FACTORY, shift=False))
    np.testing.assert_allclose(shift_only['error'], record['error_shifted'], rtol=1e-5)
    self.assertEqual((shift_only['scaled'], scale_only['shift']), (0, 0))
    self.assertLess(scale_only['error'], record['error_before'])
    self.assertLess(record['error'], scale_only['error'])

  def test_two_channels_as_far_out_as_published_lose_by_a_factor_at_each_step(self):
    """The shift takes four fifths of the output error away, the threshold four fifths of the rest and more."""
    x = _activations().copy()
    x[..., [5, 20]] *= 10
    _, record = _apply(x=x)
    self.assertLess(record['error_shifted'], record['error_before'] / 4)
    self.assertLess(record['error'], record['error_shifted'] / 5)

  def test_refuses_a_site_where_nothing_is_left_to_do(self):
    for site, options in ((_SITE._replace(shifts=False), {'scale': False}), (_SITE, {'scale': False, 'shift': False})):
      with self.assertRaisesRegex(errors.UserError, '^outlier_suppression: up/input takes no shift, and scales'):
        _apply(functools.partial(_FACTORY, **options), site)

  @parameterized.parameters((_SITE, 'linears'), (_GATED, 'inner'))
  def test_linears_that_meet_are_judged_where_they_do(self, site, scope):
    """At the gated product (or the attention's mix), as published; a linear that reads alone at its own output."""
    _, record = _apply(site=site)
    x = jnp.asarray(_activations())
    rounded = {path: {'kernel': _WEIGHT(_params()[path]['kernel'])} for path in site.consumers}
    quantized = trees.put({**_params(), **rounded}, f'{site.name}/quantizer', _ACTIVATION)
    difference = _judge(site.name, scope, quantized, x) - _judge(site.name, scope, _params(), x)
    want = np.mean(np.sum(np.square(np.asarray(difference, np.float64)), axis=-1))
    np.testing.assert_allclose(record['error_before'], want, rtol=1e-2)
    self.assertLess(record['error'], record['error_before'] / 2)

  def test_the_search_from_coarse_to_fine_misses_little(self):
    """Against every one of the hundred thresholds: the same minimum but for the steps where codes flip."""
    _, record = _apply()
    with mock.patch.object(outlier_suppression, '_STRIDE', 1):
      _, every = _apply()
    self.assertLessEqual(every['error'], record['error'])
    self.assertLess(record['error'], 1.02 * every['error'])

  def test_no_channel_is_scaled_up(self):
    params, _ = _apply(x=_activations() / 100)
    self.assertLessEqual(params['norm']['scale'].max(), 1)

  def test_without_outliers_the_largest_of_equal_thresholds_is_kept(self):
    """Where nothing is quantized, all candidates are equal, and the first scales nothing."""
    factory = functools.partial(outlier_suppression.outlier_suppression, weight=None, activation=None)
    params, record = _apply(functools.partial(factory, shift=False), x=np.round(_activations(False) * 4) / 4)
    np.testing.assert_allclose(record['error'], 0, atol=1e-8)
    self.assertEqual(record['error_before'], 0)
    np.testing.assert_array_equal(params['norm']['scale'], 1)

  @parameterized.parameters(0.0, 1e-38)
  def test_a_site_that_is_never_active_stays_as_it_is(self, size):
    """As behind a norm of zero gains; thresholds that underflow would divide zero by zero."""
    params, record = _apply(x=np.full_like(_activations(), size) * np.sign(_activations()))
    np.testing.assert_allclose(params['norm']['scale'], 1)
    np.testing.assert_allclose(params['up']['kernel'], _params()['up']['kernel'])
    self.assertEqual((record['scaled'], record['error']), (0, 0))

  def test_a_site_without_a_bias_before_it_is_scaled_only(self):
    params, record = _apply(site=_SITE._replace(shifts=False))
    self.assertEqual(record['shift'], 0)
    self.assertNotIn('bias', params['up'])
    self.assertLess(record['error'], record['error_before'])


if __name__ == '__main__':
  absltest.main()
