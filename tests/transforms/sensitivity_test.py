"""Sensitivity: both scores against their definitions, what they predict, and what is refused."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.calibration import driver
from jaxquant.calibration import sites
from jaxquant.models import staging
from jaxquant.numerics import formats
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.transforms import sensitivity
from tests import calibrating
from tests import networks

_GRIDS = tuple(
    quantizers.WeightQuantizer(formats.parse(name), **options)
    for name, options in (('int3', {}), ('dint4', {'group_size': 4}), ('uint4', {'axis': -1}), ('int8', {})))


def _two_linears():
  """A tree of two linears of different sizes, which `_loss` reads one behind the other."""
  rng = np.random.default_rng(0)
  return {
      'first': {'kernel': rng.normal(size=(8, 12)).astype(np.float32)},
      'second': {'kernel': rng.normal(size=(12, 4)).astype(np.float32), 'bias': np.ones(4, np.float32)}}


def _loss(params, batch):
  hidden = jnp.tanh(batch['x'] @ params['first']['kernel'])
  return jnp.sum((hidden @ params['second']['kernel'] + params['second']['bias'] - batch['y']) ** 2)


def _data(rows, seed=1):
  rng = np.random.default_rng(seed)
  return {'x': rng.normal(size=(rows, 5, 8)).astype(np.float32), 'y': rng.normal(size=(rows, 5, 4)).astype(np.float32)}


def _halves(data):
  return [{key: x[part] for key, x in data.items()} for part in (slice(None, 3), slice(3, None))]


def _scores(loss=_loss, params=None, batches=None, paths=('first', 'second'), candidates=_GRIDS):
  batches = [_data(6)] if batches is None else batches
  return sensitivity.loss_scores(loss, params or _two_linears(), batches, paths, candidates)


@functools.cache
def _rounding(grid):
  return networks.quick_jit(lambda kernel: quantize.dequantize(grid.quantized(kernel)))


def _rounded(kernel, grid):
  return np.asarray(_rounding(grid)(kernel), np.float64)


def _measure(owned, params, activations):
  return calibrating.apply(
      functools.partial(sensitivity.layer_errors, candidates=_GRIDS), owned, params,
      [calibrating.batch({'input': x}) for x in activations])


class ZeroLossTest(parameterized.TestCase):

  def test_a_loss_without_gradients_is_refused(self):
    with self.assertRaisesRegex(errors.UserError, 'gradients of the loss are all zero'):
      _scores(lambda params, batch: 0.0 * _loss(params, batch))


class LayerErrorsTest(parameterized.TestCase):

  _CLAIM = calibrating.claim('first', 'other', sites=[sites.Site('input', None, ('first', 'other'))])

  def _params(self):
    kernel = _two_linears()['first']['kernel']
    return {'first': {'kernel': kernel}, 'other': {'kernel': -2 * kernel[:, :8]}}

  def test_are_those_of_the_outputs_and_nothing_changes(self):
    rng = np.random.default_rng(2)
    activations = [rng.normal(size=(2, 3, 8)).astype(np.float32) for _ in range(3)]
    params, record = _measure(self._CLAIM, self._params(), activations)
    jax.tree.map(np.testing.assert_array_equal, params, self._params())
    x = np.concatenate(activations).astype(np.float64)
    for path in ('first', 'other'):
      kernel = self._params()[path]['kernel']
      want = [(np.square(x @ (_rounded(kernel, grid) - kernel))).sum() / np.square(x @ kernel).sum() for grid in _GRIDS]
      np.testing.assert_allclose(record[path]['errors'], want, rtol=1e-4)

  def test_under_the_driver_every_linear_of_every_block_gets_them(self):
    config, params = networks.config('llama', layers=2), networks.params('llama', 2)
    measure = functools.partial(sensitivity.layer_errors, candidates=(_GRIDS[0], _GRIDS[-1]))
    result = driver.run(
        params, staging.staged(config), [driver.Step('linears', [('layers/.*', measure)], every=False)],
        [networks.tokens(4)])
    jax.tree.map(np.testing.assert_array_equal, result.params, params)
    self.assertLen(result.decisions, 14)
    for entry in result.decisions.values():
      three_bits, eight_bits = entry['layer_errors']['errors']
      self.assertBetween(eight_bits, 1e-6, three_bits / 100)

  def test_refusals(self):
    activations = [np.ones((1, 3, 8), np.float32)]
    with self.assertRaisesRegex(errors.UserError, '^no candidates'):
      sensitivity.layer_errors(self._CLAIM, ())
    quantized = {**self._params(), 'other': {'kernel': _GRIDS[0].quantized(jnp.ones((8, 8)))}}
    with self.assertRaisesRegex(errors.UserError, '^other: already quantized to int3$'):
      _measure(self._CLAIM, quantized, activations)
    integer = {**self._params(), 'input': {'quantizer': quantizers.DynamicQuantizer(formats.parse('int8'))}}
    with self.assertRaisesRegex(errors.UserError, '^first: .* per input channel cannot meet integer activations'):
      _measure(self._CLAIM, integer, activations)


class LossScoresTest(parameterized.TestCase):

  def test_are_half_the_squared_differences_weighted_by_squared_gradients_of_sequences(self):
    params, data = _two_linears(), _data(6)
    gradients = [
        jax.grad(_loss)(params, {key: x[i : i + 1] for key, x in data.items()}) for i in range(6)]
    for path, found in _scores().items():
      fisher = np.mean([np.asarray(g[path]['kernel'], np.float64) ** 2 for g in gradients], axis=0)
      kernel = params[path]['kernel']
      want = [np.sum(fisher * (_rounded(kernel, grid) - kernel) ** 2) / 2 for grid in _GRIDS]
      np.testing.assert_allclose(found, want, rtol=1e-4)

  def test_batches_of_any_division_give_the_same_scores(self):
    whole, halves = _scores(), _scores(batches=_halves(_data(6)))
    for path in whole:
      np.testing.assert_allclose(halves[path], whole[path], rtol=1e-6)

  def test_the_loss_is_traced_once_for_all_batches(self):
    traces = []

    def loss(params, batch):
      traces.append(batch)
      return _loss(params, batch)

    _scores(loss, batches=_halves(_data(6)))
    self.assertLen(traces, 1)

  def test_grids_of_a_linear_in_the_tree_do_not_take_part(self):
    params = trees.put(_two_linears(), 'first/kernel_quantizer', _GRIDS[0])

    def loss(params, batch):
      kernel = params['first']['kernel']
      kernel = params['first'].get('kernel_quantizer', lambda x: x)(kernel)
      return _loss(trees.put(params, 'first/kernel', kernel), batch)

    self.assertEqual(_scores(loss, params), _scores())

  def test_predicts_the_divergence_of_a_network_from_itself(self):
    """Targets drawn from the network make its weights the minimum of the loss, and the Fisher the Hessian."""
    config, params = networks.config('llama'), networks.params('llama')
    ids, int4 = networks.tokens(64), quantizers.WeightQuantizer(formats.parse('int4'))
    logits = networks.evaluator(config)
    targets = jax.random.categorical(jax.random.key(0), logits(params, ids), -1)

    def loss(tree, batch):
      chosen = jnp.take_along_axis(jax.nn.log_softmax(logits(tree, batch[0])), batch[1][..., None], -1)
      return -jnp.sum(chosen)

    found = sensitivity.loss_scores(loss, params, [(ids, targets)], ['layers/.*'], [int4])
    log_p = lambda tree: jax.nn.log_softmax(logits(tree, ids))
    exact, real = log_p(params), {}
    for path in found:
      rounded = _rounding(int4)(trees.get(params, path)['kernel'])
      lost = jnp.exp(exact) * (exact - log_p(trees.put(params, f'{path}/kernel', rounded)))
      real[path] = float(jnp.mean(jnp.sum(lost, axis=(-1, -2))))
    self.assertLen(found, 7)
    for path, (score,) in found.items():
      self.assertBetween(score / real[path], 2 / 3, 3 / 2, path)
    self.assertGreater(max(real.values()), 2 * min(real.values()))  # so that the factor says something

  def test_refusals(self):
    cases = [
        ('^no candidates', {'candidates': ()}), ('need at least one batch$', {'batches': []}),
        ("^linears to score: 'third' wins none of 2 names", {'paths': ('first', 'third')}),
        ('^second: group size 5 does not divide 12 elements$',
         {'paths': ('second',), 'candidates': [quantizers.WeightQuantizer(formats.parse('int4'), group_size=5)]}),
        ('^first: already quantized to int3$',
         {'params': trees.put(_two_linears(), 'first/kernel', _GRIDS[0].quantized(jnp.ones((8, 12))))})]
    for message, options in cases:
      with self.subTest(message), self.assertRaisesRegex(errors.UserError, message):
        _scores(**options)
    with self.assertRaisesRegex(errors.NonFiniteError, '^gradients of the loss: non-finite values in first$'):
      _scores(lambda params, batch: jnp.sum(jnp.sqrt(params['first']['kernel'] * 0)), paths=('.*',))


if __name__ == '__main__':
  absltest.main()
