"""SmoothQuant, AWQ and AQAS: the scales of their formulas, and candidates judged by the error they claim."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.calibration import sites
from jaxquant.numerics import formats
from jaxquant.numerics import quantizers
from jaxquant.transforms import aqas
from jaxquant.transforms import awq
from jaxquant.transforms import norm_fusion
from jaxquant.transforms import outlier_suppression
from jaxquant.transforms import smooth_quant
from tests import calibrating

_FEATURES = 16
_SITE = sites.Site('mlp/input', 'mlp_norm', ('mlp/gate', 'mlp/up'), shifts=True)
_WEIGHT = quantizers.WeightQuantizer(formats.parse('uint4'))
_ACTIVATION = quantizers.DynamicQuantizer(formats.parse('uint8'))


def _product(layer, x, specification):
  """A linear evaluated here, not by the library: shift, scale, quantizer, kernel, bias."""
  specification = specification or {}
  x = (x - specification.get('shift', 0)) / specification.get('scale', 1)
  if 'quantizer' in specification:
    x = specification['quantizer'](x)
  return x @ layer['kernel'] + layer.get('bias', 0)


def _judge(name, scope, params, x):
  del name
  gate, up = (_product(params['mlp'][key], x, params['mlp'].get('input')) for key in ('gate', 'up'))
  if scope == 'linears':
    return jnp.concatenate([gate, up], axis=-1)
  inner = jax.nn.silu(gate) * up
  return inner if scope == 'inner' else inner @ params['mlp']['down']['kernel']


_CLAIM = calibrating.claim('mlp/input', sites=[_SITE], judge=_judge)


@functools.cache
def _params():
  rng = np.random.default_rng(0)
  kernel = lambda i, o: {'kernel': jnp.asarray(rng.normal(size=(i, o)) / np.sqrt(i), jnp.float32)}
  return {'mlp_norm': {'scale': jnp.ones(_FEATURES), 'bias': jnp.zeros(_FEATURES)},
          'mlp': {'gate': kernel(_FEATURES, 24), 'up': kernel(_FEATURES, 24), 'down': kernel(24, _FEATURES)}}


@functools.cache
def _activations():
  """[6, 10, features], two channels of which stick out, as outputs of the norm."""
  x = np.random.default_rng(1).normal(size=(6, 10, _FEATURES)).astype(np.float32)
  x[..., 3] *= 40
  x[..., 8] *= 12
  return x


def _apply(factory, params=None, claim=_CLAIM):
  batches = [calibrating.batch({'mlp/input': _activations()[i : i + 2]}, i) for i in (0, 2, 4)]
  params, record = calibrating.apply(factory, claim, params or _params(), batches)
  return params, record['mlp/input']


def _scale(params):
  """What the norm's gain was divided by."""
  return np.asarray(1 / params['mlp_norm']['scale'])


def _kernels(params):
  return np.concatenate([params['mlp'][key]['kernel'] for key in ('gate', 'up')], axis=-1)


class FormulasTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.most = np.abs(_activations()).max((0, 1))
    self.mean = np.abs(_activations()).mean((0, 1))
    self.weights = np.abs(_kernels(_params())).max(-1)

  @parameterized.parameters(0.0, 0.3, 0.5, 1.0)
  def test_smooth_quant(self, exponent):
    params, record = _apply(functools.partial(smooth_quant.smooth_quant, exponent=exponent))
    np.testing.assert_allclose(_scale(params), self.most**exponent / self.weights ** (1 - exponent), rtol=1e-5)
    np.testing.assert_allclose(_kernels(params), _kernels(_params()) * _scale(params)[:, None], rtol=1e-5)
    np.testing.assert_allclose([record['exponent'], record['largest']], [exponent, _scale(params).max()], rtol=1e-5)

  def test_smooth_quant_equalizes_activations_or_weights_at_its_ends(self):
    params, _ = _apply(functools.partial(smooth_quant.smooth_quant, exponent=1.0))
    np.testing.assert_allclose(self.most / _scale(params), 1, rtol=1e-5)
    params, _ = _apply(functools.partial(smooth_quant.smooth_quant, exponent=0.0))
    np.testing.assert_allclose(np.abs(_kernels(params)).max(-1), 1, rtol=1e-5)

  def test_awq(self):
    params, record = _apply(functools.partial(awq.awq, weight=_WEIGHT))
    scale = self.mean ** record['exponent']
    np.testing.assert_allclose(_scale(params), scale / np.sqrt(scale.max() * scale.min()), rtol=1e-5)
    self.assertGreater(record['exponent'], 0)
    self.assertEqual(record['weight_exponent'], 0)

  def test_awq_with_two_exponents(self):
    params, record = _apply(functools.partial(awq.awq, weight=_WEIGHT, two_exponents=True))
    weights = np.abs(_kernels(_params())).mean(-1)
    scale = self.mean ** record['exponent'] / weights ** record['weight_exponent']
    np.testing.assert_allclose(_scale(params), scale / np.sqrt(scale.max() * scale.min()), rtol=1e-5)
    self.assertLessEqual(record['error'], _apply(functools.partial(awq.awq, weight=_WEIGHT))[1]['error'])

  def test_aqas(self):
    params, record = _apply(functools.partial(aqas.aqas, weight=_WEIGHT, activation=_ACTIVATION))
    scale = self.most ** record['exponent'] / self.weights ** record['weight_exponent']
    np.testing.assert_allclose(record['exponent'] + record['weight_exponent'], 1, rtol=1e-6)
    np.testing.assert_allclose(_scale(params), scale / np.sqrt(scale.max() * scale.min()), rtol=1e-5)


class SearchesTest(parameterized.TestCase):

  def _error(self, params, scope, activation):
    """The error of the folded and then rounded block, in NumPy and by the formula of the method's paper."""
    x = jnp.asarray(_activations())
    quantized = {**params['mlp']}
    for key in ('gate', 'up'):
      quantized[key] = {**quantized[key], 'kernel': _WEIGHT(quantized[key]['kernel'])}
    folded = x * params['mlp_norm']['scale'] + params['mlp_norm']['bias']
    specification = {} if activation is None else {'quantizer': activation}
    got = _judge('', scope, {'mlp': {**quantized, 'input': specification}}, folded)
    want = _judge('', scope, _params(), x)
    return np.mean(np.sum(np.square(np.asarray(got, np.float64) - want), axis=-1))

  @parameterized.parameters(
      ('awq', functools.partial(awq.awq, weight=_WEIGHT), 'module', None),
      ('aqas', functools.partial(aqas.aqas, weight=_WEIGHT, activation=_ACTIVATION), 'linears', _ACTIVATION),
      ('smooth_quant', functools.partial(
          smooth_quant.smooth_quant, search=True, weight=_WEIGHT, activation=_ACTIVATION), 'linears', _ACTIVATION))
  def test_the_recorded_error_is_that_of_the_result_and_less_than_before(self, _, factory, scope, activation):
    params, record = _apply(factory)
    np.testing.assert_allclose(record['error'], self._error(params, scope, activation), rtol=1e-2)
    np.testing.assert_allclose(record['error_before'], self._error(_params(), scope, activation), rtol=1e-2)
    self.assertLess(record['error'], record['error_before'] / 1.5)

  @parameterized.parameters((True, True, 'inner'), (True, False, 'linears'), (False, True, 'linears'))
  def test_aqas_judges_what_opens_an_attention_by_its_mix_unless_told_not_to(self, opens, attention, scope):
    claim = calibrating.claim('mlp/input', sites=[_SITE._replace(opens_attention=opens)], judge=_judge)
    factory = functools.partial(aqas.aqas, weight=_WEIGHT, activation=_ACTIVATION, attention=attention)
    _, record = _apply(factory, claim=claim)
    np.testing.assert_allclose(record['error_before'], self._error(_params(), scope, _ACTIVATION), rtol=1e-2)

  def test_scales_that_suit_weights_alone_are_not_those_that_suit_both_operands(self):
    """Section 3.1 of AQAS: the same candidates, judged without and with the activation's 3 bits."""
    coarse = quantizers.DynamicQuantizer(formats.parse('uint3'))
    weights_only, both = (
        _apply(functools.partial(aqas.aqas, weight=_WEIGHT, activation=activation))[0] for activation in (None, coarse))
    self.assertLess(self._error(both, 'linears', coarse), 0.9 * self._error(weights_only, 'linears', coarse))
    self.assertLess(self._error(weights_only, 'linears', None), self._error(both, 'linears', None))


class NormFusionTest(absltest.TestCase):

  def test_the_norm_becomes_plain_and_zero_gains_stay_exact(self):
    norm = {'scale': jnp.arange(float(_FEATURES)), 'bias': jnp.ones(_FEATURES)}
    params = {**_params(), 'mlp_norm': norm}
    fused, record = calibrating.apply(norm_fusion.norm_fusion, _CLAIM, params)
    np.testing.assert_array_equal(fused['mlp_norm']['scale'], 1)
    np.testing.assert_array_equal(fused['mlp_norm']['bias'], 0)
    self.assertEqual(record['mlp/input']['largest'], _FEATURES - 1)
    x = jnp.asarray(_activations())
    want = _judge('', 'linears', params, x * norm['scale'] + norm['bias'])
    np.testing.assert_allclose(_judge('', 'linears', fused, x), want, rtol=1e-4, atol=1e-3)

  def test_only_norms_are_fused(self):
    site = _SITE._replace(producer='mlp/up', consumers=('mlp/down',), name='mlp/down/input')
    with self.assertRaisesRegex(errors.UserError, 'mlp/down/input: mlp/up is a linear layer, not a norm'):
      calibrating.apply(norm_fusion.norm_fusion, calibrating.claim('mlp/down/input', sites=[site]), _params())


class RefusalsTest(parameterized.TestCase):

  @parameterized.parameters(
      (awq.awq, {'candidates': 1}, '^awq: candidates is 1; a search compares at least 2$'),
      (awq.awq, {'candidates': 0, 'two_exponents': True}, '^awq: candidates is 0'),
      (awq.awq, {'tokens': 0}, '^awq: tokens is 0; a search needs at least 1$'),
      (aqas.aqas, {'candidates': 1}, '^aqas: candidates is 1'),
      (aqas.aqas, {'tokens': -5}, '^aqas: tokens is -5'),
      (smooth_quant.smooth_quant, {'search': True, 'candidates': 1}, '^smooth_quant: candidates is 1'),
      (smooth_quant.smooth_quant, {'search': True, 'tokens': 0}, '^smooth_quant: tokens is 0'),
      (smooth_quant.smooth_quant, {'exponent': 1.01}, '^smooth_quant: exponent is 1.01, not between 0 and 1$'),
      (smooth_quant.smooth_quant, {'exponent': -0.5}, '^smooth_quant: exponent is -0.5'),
      (smooth_quant.smooth_quant, {'exponent': float('nan')}, '^smooth_quant: exponent is nan'),
      (outlier_suppression.outlier_suppression, {'candidates': 0}, '^outlier_suppression: candidates is 0'),
      (outlier_suppression.outlier_suppression, {'tokens': 0}, '^outlier_suppression: tokens is 0'))
  def test_an_option_out_of_its_range_is_named(self, method, options, message):
    with self.assertRaisesRegex(errors.UserError, message):
      method(_CLAIM, weight=_WEIGHT, activation=_ACTIVATION, **options)

  def test_sequences_of_unequal_length(self):
    batches = [calibrating.batch({'mlp/input': _activations()[i : i + 2, : 10 - i]}, i) for i in (0, 2)]
    with self.assertRaisesRegex(errors.UserError, '^a batch of sequences of 8 tokens behind one of 10: a method'):
      calibrating.apply(functools.partial(awq.awq, weight=_WEIGHT), _CLAIM, _params(), batches)

  def test_groups_that_do_not_divide_before_any_search(self):
    weight = quantizers.WeightQuantizer(formats.parse('uint4'), group_size=5)
    with self.assertRaisesRegex(errors.UserError, '^mlp/gate: group size 5 does not divide 16 elements$'):
      _apply(functools.partial(awq.awq, weight=weight))


if __name__ == '__main__':
  absltest.main()
