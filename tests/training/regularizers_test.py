"""Kurtosis, of outputs and of weights, against golden numbers and closed forms in float64."""

import re

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.training import regularizers
from tests import networks

_kurtosis = networks.quick_jit(regularizers.kurtosis)
_gradient = networks.quick_jit(jax.grad(lambda y, weights: jnp.sum(regularizers.kurtosis(y) * weights)))


def _random(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


def _reference(y) -> tuple[np.ndarray, np.ndarray]:
  """Kurtosis [...] of y [..., features] and its gradient, by their closed forms in float64."""
  y = np.asarray(y, np.float64)
  centered = y - y.mean(-1, keepdims=True)
  second, third, fourth = (np.mean(centered**power, axis=-1, keepdims=True) for power in (2, 3, 4))
  slope = 4 * (centered**3 - third - fourth / second * centered) / second**2
  return (fourth / second**2)[..., 0], slope / y.shape[-1]


class KurtosisTest(parameterized.TestCase):

  @parameterized.parameters(([1, 2, 3, 10], 2.2304), ([0, 0, 0, 1], 2.333333))
  def test_golden_values_of_the_specification(self, y, want):
    np.testing.assert_allclose(regularizers.kurtosis(jnp.float32(y)), want, atol=5e-5)

  @parameterized.parameters(3, 16, 1000)
  def test_one_spike_among_zeros(self, size):
    want = (size**2 - 3 * size + 3) / (size - 1)
    for where in (0, 1, size // 2, size - 1):
      spike = jnp.zeros(size).at[where].set(50.0)
      np.testing.assert_allclose(_kurtosis(spike), want, rtol=1e-5)

  def test_distributions(self):
    np.testing.assert_allclose(_kurtosis(jnp.linspace(-2, 5, 5000)), 1.8, atol=1e-4)
    np.testing.assert_allclose(jnp.mean(_kurtosis(jnp.float32(_random(20, 5000)))), 3, atol=0.05)

  def test_scale_and_offset_do_not_matter(self):
    y = jnp.float32(_random(4, 100))
    for scale, offset in ((3, 0), (-1, 0), (1, 7), (-50, 20), (1e-4, 0)):
      np.testing.assert_allclose(_kurtosis(scale * y + offset), _kurtosis(y), rtol=1e-5)

  # The offset and the outliers are where sums of powers cancel; features 0, 32 and 63 are where they are centred.
  @parameterized.named_parameters(
      ('plain', 1, 0, ()), ('small', 0.03, 0, ()), ('tiny', 1e-5, 0, ()), ('large', 1000, 0, ()),
      ('far from zero', 1, 300, ()),
      ('outlier first', 1, 0, (0,)), ('outlier amid', 1, 5, (32,)), ('outlier last', 1, 0, (63,)),
      ('outliers at two of them', 1, 0, (0, 63)), ('outlier elsewhere', 1, 0, (7,)))
  def test_values_and_gradients_are_those_of_the_closed_form(self, scale, offset, outliers):
    y = _random(3, 5, 64) * scale + offset
    y[..., list(outliers)] += 100 * scale
    y, weights = np.float32(y), np.float32(_random(3, 5, seed=1))
    want, slope = _reference(y)
    slope *= weights[..., None]
    tolerance = 1e-3 if offset > 100 or len(outliers) > 1 else 1e-4
    np.testing.assert_allclose(_kurtosis(y), want, rtol=tolerance)
    np.testing.assert_allclose(_gradient(y, weights), slope, atol=tolerance * np.abs(slope).max())

  @parameterized.parameters(1.0, 0.01)
  def test_gradient_is_orthogonal_to_scaling_and_shifting(self, scale):
    # A quotient with an epsilon below would pull small outputs, such as those of a fresh layer, to zero.
    y, weights = jnp.float32(_random(6, 64) * scale + 2 * scale), jnp.ones(6)
    gradient = scale * np.float64(_gradient(y, weights))
    self.assertGreater(np.linalg.norm(gradient, axis=-1).min(), 0.01)
    np.testing.assert_allclose(gradient.sum(-1), 0, atol=1e-5)
    np.testing.assert_allclose((gradient * (y - y.mean(-1, keepdims=True))).sum(-1) / scale, 0, atol=1e-5)

  @parameterized.parameters('bfloat16', 'float16')
  def test_narrow_inputs_are_computed_in_float32(self, dtype):
    # Fourth powers of thousands overflow float16, and eight bits do not resolve their means.
    y, weights = jnp.asarray(_random(3, 64) * 1000 + 500, dtype), jnp.ones(3)
    wide = y.astype(jnp.float32)
    np.testing.assert_array_equal(_kurtosis(y), _kurtosis(wide), strict=True)
    np.testing.assert_allclose(_kurtosis(y), _reference(wide)[0], rtol=1e-4)
    gradient, want = _gradient(y * 0.001, weights), _reference((y * 0.001).astype(jnp.float32))[1]
    self.assertEqual(gradient.dtype, dtype)
    np.testing.assert_allclose(np.float32(gradient), want, rtol=0.01, atol=1e-3 * np.abs(want).max())

  @parameterized.parameters(([3.0] * 8,), ([0.0] * 8,), ([0.0] * 7 + [1e-7],))
  def test_equal_features_have_none_and_no_gradient(self, row):
    y = jnp.tile(jnp.float32(row), (2, 1))
    np.testing.assert_array_equal(_kurtosis(y), 0)
    np.testing.assert_array_equal(_gradient(y, jnp.ones(2)), 0)


class OutputKurtosisTest(parameterized.TestCase):

  def _penalty(self, ys, tokens: int, **options):
    regularizer = regularizers.OutputKurtosis(0.5, **options)
    return regularizer.penalty([regularizer.tap().function(jnp.float32(y)) for y in ys], tokens)

  def test_mean_and_sum_over_the_tokens_of_the_batch(self):
    # Three linears of unequal widths; of a batch of 40 tokens these 10 are a part.
    ys = [_random(2, 5, features, seed=features) for features in (8, 8, 12)]
    means = [_reference(y)[0].mean() for y in ys]
    penalty, mean = self._penalty(ys, 40)
    np.testing.assert_allclose([penalty, mean], [0.5 * sum(means), np.mean(means)], rtol=1e-5)
    penalty, mean = self._penalty(ys, 40, reduction='sum')
    np.testing.assert_allclose([penalty, mean], [0.5 * 40 * sum(means), np.mean(means)], rtol=1e-5)

  @parameterized.parameters((2, 2), (3, 3), (4, 2), (5, 1), (12, 6))
  def test_stride_measures_every_so_many_sequences(self, stride, every):
    ys = [_random(6, 7, 8)]
    for reduction, factor in (('mean', 1), ('sum', 42)):
      mean = _reference(ys[0][::every])[0].mean()
      penalty, reported = self._penalty(ys, 42, stride=stride, reduction=reduction)
      np.testing.assert_allclose([penalty, reported], [0.5 * factor * mean, mean], rtol=1e-5)

  # 1000 features are summed in two runs, 1021 of them, a prime, one by one.
  @parameterized.parameters((8, 1), (8, 2), (1000, 2), (1021, 1))
  def test_gradient_is_that_of_the_sample(self, features, stride):
    regularizer = regularizers.OutputKurtosis(0.5, stride=stride)
    y = np.float32(_random(4, 3, features) + 0.5)
    penalty = lambda y: regularizer.penalty([regularizer.tap().function(y)], 12)[0]
    want = np.zeros(y.shape)
    want[::stride] = 0.5 * _reference(y[::stride])[1] / (12 / stride)
    np.testing.assert_allclose(jax.grad(penalty)(y), want, atol=1e-4 * np.abs(want).max())

  @parameterized.product(ratio=(0, 10, 30, 100, -1000), stride=(1, 2))
  def test_mean_of_many_deviations_cancels_nothing(self, ratio, stride):
    regularizer = regularizers.OutputKurtosis(1.0, stride=stride)
    y = np.float32(_random(4, 3, 512) + ratio)
    y[..., 0] += 50  # an outlier channel
    penalty = lambda y: regularizer.penalty([regularizer.tap().function(y)], 12)[0]
    value, gradient = networks.quick_jit(jax.value_and_grad(penalty))(y)
    want, slope = _reference(y[::stride])
    np.testing.assert_allclose(value, want.mean(), rtol=1e-5)
    np.testing.assert_allclose(gradient[::stride] * want.size, slope, atol=1e-4 * np.abs(slope).max())

  def test_pattern_matches_the_whole_path_of_a_linear(self):
    tap = regularizers.OutputKurtosis(1.0, pattern='layers/0/.*|head').tap()
    for point, matches in (('layers/0/mlp/up/output', True), ('head/output', True), ('layers/1/mlp/up/output', False),
                           ('layers/0/mlp/input', False), ('embedding/head/output', False)):
      self.assertEqual(bool(re.fullmatch(tap.pattern, point)), matches, point)

  @parameterized.parameters(
      (dict(reduction='max'), "kurtosis.reduction is 'max'; there are mean and sum"),
      (dict(stride=0), 'kurtosis.stride must be at least 1, not 0'),
      (dict(every=0), 'kurtosis.every must be at least 1, not 0'))
  def test_mistakes_are_named(self, options, message):
    with self.assertRaisesRegex(errors.UserError, message):
      regularizers.OutputKurtosis(1.0, **options)


class WeightKurtosisTest(parameterized.TestCase):

  def _params(self, scale: float) -> dict:
    layer = lambda seed, *shape: {'kernel': jnp.float32(scale * _random(*shape, seed=seed) ** 3)}
    return {'layers': {'0': layer(0, 16, 6), '1': layer(1, 16, 8)}, 'head': layer(2, 16, 4)}

  # Of fresh networks, weights deviate by a few hundredths or thousandths.
  @parameterized.parameters(1.0, 0.02, 0.002)
  def test_penalty_is_that_of_the_closed_form(self, scale):
    params = self._params(scale)
    channels = [_reference(np.asarray(layer['kernel'], np.float64).T / scale)[0].mean()
                for layer in params['layers'].values()]
    penalty, mean = regularizers.WeightKurtosis(0.25).penalty(params)
    np.testing.assert_allclose(mean, np.mean(channels), rtol=1e-4)
    np.testing.assert_allclose(penalty, 0.25 * np.mean((np.array(channels) - 1.8) ** 2), rtol=1e-4)

  def test_pattern_and_target(self):
    head = _reference(np.asarray(self._params(1.0)['head']['kernel']).T)[0].mean()
    penalty, mean = regularizers.WeightKurtosis(1.0, pattern='head', target=3.0).penalty(self._params(1.0))
    np.testing.assert_allclose([penalty, mean], [(head - 3) ** 2, head], rtol=1e-4)

  def test_following_the_gradient_makes_weights_uniform(self):
    regularizer = regularizers.WeightKurtosis(1.0)
    gradient = jax.grad(lambda params: regularizer.penalty(params)[0])
    descend = lambda _, params: jax.tree.map(lambda w, g: w - 0.5 * g, params, gradient(params))
    params = {'layers': {'0': {'kernel': jnp.float32(_random(64, 6))}}}
    params = networks.quick_jit(lambda params: jax.lax.fori_loop(0, 300, descend, params))(params)
    np.testing.assert_allclose(regularizer.penalty(params)[1], 1.8, atol=0.05)


if __name__ == '__main__':
  absltest.main()
