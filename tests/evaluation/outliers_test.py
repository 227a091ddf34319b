"""Outlier analysis: planted outliers are found with their exact size, and histograms count every value once."""

import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant.evaluation import outliers
from jaxquant.evaluation import precisions
from jaxquant.layers import linear
from jaxquant.layers import tap
from jaxquant.models import staging
from jaxquant.numerics import formats
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from tests import networks

_read = networks.quick_jit(outliers.read)


def _statistics(x) -> dict:
  return outliers.site_statistics(_read(x))


def _kurtosis(x) -> np.ndarray:
  centered = np.float64(x) - np.float64(x).mean(-1, keepdims=True)
  return (centered**4).mean(-1) / (centered**2).mean(-1) ** 2


def _planted() -> dict:
  """A tree with a channel of the stream and a weight that stand out, tiny weights in `o`, and codes in `up`."""
  params = networks.params('llama')
  at = lambda path: trees.get(params, f'layers/0/{path}')
  changes = {
      'attention_norm/scale': at('attention_norm/scale').at[5].set(80.0),
      'mlp/down/kernel': at('mlp/down/kernel').at[3, 2].set(-2.5),
      'attention/o/kernel': at('attention/o/kernel') * 0.01,
      'mlp/up/kernel': quantize.quantize(at('mlp/up/kernel'), formats.parse('int2'))}
  for path, value in changes.items():
    params = trees.put(params, f'layers/0/{path}', value)
  return params


@functools.cache
def _analysis() -> tuple[dict, dict]:
  """Records of the planted tree: of sites by name, of weights by path."""
  sites, weights = outliers.analyze(_planted(), networks.config('llama'), networks.tokens(4))
  return {record['site']: record for record in sites}, {record['path']: record for record in weights}


@functools.cache
def _activations() -> dict:
  """The activations of the planted tree at all sites."""
  model = staging.make(networks.config('llama'), taps=(tap.Tap('.*/input', lambda x: x),))
  apply = networks.quick_jit(functools.partial(model.apply, mutable=[tap.COLLECTION]))
  return tap.by_point(apply({'params': _planted()}, networks.tokens(4))[1][tap.COLLECTION])


class SiteStatisticsTest(parameterized.TestCase):

  @parameterized.parameters('float32', 'bfloat16')
  def test_planted_channel_is_found_with_its_size(self, dtype):
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (2, 8, 64))
    x = signs * np.where(np.arange(64) == 17, 20.0, 1.0)
    got = _statistics(jnp.asarray(x, dtype))
    self.assertEqual((got['peak_ratio'], got['outlier_channels'], got['absolute_maximum']), (20, 1, 20))
    np.testing.assert_allclose(got['kurtosis'], _kurtosis(x).mean(), rtol=1e-4)
    self.assertEqual({str(value.dtype) for value in _read(jnp.asarray(x, dtype)).values()}, {'float32'})

  def test_channels_count_beyond_six_times_the_mean(self):
    # 16 channels of 1 and one of c: c / ((16 + c) / 17) is above 6 from c = 8.727 on.
    x = lambda c: jnp.asarray([[1.0] * 16 + [c]])
    self.assertEqual([_statistics(x(c))['outlier_channels'] for c in (8.7, 8.8)], [0, 1])

  def test_size_of_a_channel_is_its_mean_magnitude_not_its_mean_or_maximum(self):
    x = jnp.float32([[1, 3, -1], [-1, -3, 9], [1, 3, 1], [-1, -3, -1]])
    self.assertEqual(_statistics(x)['peak_ratio'], 1)

  def test_beside_a_dead_median_channel_every_live_one_sticks_out_infinitely(self):
    x = lambda live: jnp.float32(np.arange(9) < live) * jnp.ones((4, 9))
    self.assertEqual([_statistics(x(live))['peak_ratio'] for live in (9, 5, 4, 1, 0)], [1, 1, np.inf, np.inf, 0])
    self.assertTrue(np.isnan(_statistics(x(9) * np.nan)['peak_ratio']))

  def test_gaussian_tokens_have_kurtosis_three_and_zeros_stay_finite(self):
    x = np.random.default_rng(0).normal(size=(50, 2000))
    np.testing.assert_allclose(_statistics(jnp.float32(x))['kurtosis'], 3, atol=0.05)
    self.assertTrue(all(value == 0 for value in _statistics(jnp.zeros((50, 2000))).values()))


class AnalyzeTest(parameterized.TestCase):

  def test_every_site_with_those_that_read_the_residual_stream_apart(self):
    self.assertEqual({name: record['reads_residual'] for name, record in _analysis()[0].items()}, {
        'layers/0/attention/input': True, 'layers/0/attention/o/input': False, 'layers/0/mlp/input': True,
        'layers/0/mlp/down/input': False, 'head/input': True})

  def test_projections_of_the_embedding_are_no_sites(self):
    config = dataclasses.replace(networks.config('opt'), embedding_width=8)
    params = staging.make(config).init(jax.random.key(0), networks.tokens(1))['params']
    found, _ = outliers.analyze(params, config, networks.tokens(2))
    self.assertCountEqual([record['site'] for record in found], [site.name for site in staging.model_sites(config)])

  def test_statistics_are_those_of_the_activations(self):
    for name, record in _analysis()[0].items():
      x = np.float64(_activations()[name])
      channels = np.abs(x).mean((0, 1))
      self.assertAlmostEqual(record['peak_ratio'], channels.max() / np.median(channels), delta=1e-4 * channels.max())
      self.assertAlmostEqual(record['absolute_maximum'], np.abs(x).max(), places=4)
      self.assertEqual(record['outlier_channels'], np.sum(channels > 6 * channels.mean()))

  def test_planted_channel_stands_out_at_its_site_alone(self):
    counts = {name: record['outlier_channels'] for name, record in _analysis()[0].items()}
    self.assertEqual(counts.pop('layers/0/attention/input'), 1)
    self.assertEqual(set(counts.values()), {0})

  def test_kernels_of_codes_too_and_however_small_their_weights(self):
    kernels = {path: np.asarray(linear.dense_kernel(trees.get(_planted(), path)))
               for path in trees.matching('layers/.*', trees.linears(_planted()))}
    records = _analysis()[1]
    self.assertEqual(set(records), set(kernels))
    for path, kernel in kernels.items():
      np.testing.assert_allclose(records[path]['kurtosis'], _kurtosis(kernel.ravel()), rtol=1e-4)
      np.testing.assert_allclose(records[path]['absolute_maximum'], np.abs(kernel).max(), rtol=1e-6)
    self.assertGreater(records['layers/0/mlp/down']['kurtosis'], 20)
    self.assertBetween(records['layers/0/attention/o']['kurtosis'], 2, 4)


class HistogramsTest(absltest.TestCase):

  def _histograms(self, tokens) -> dict:
    params = quantized = networks.params('llama')
    for name in (site.name for site in staging.model_sites(networks.config('llama'))):
      quantizer = quantizers.ClipQuantizer(jnp.float32(-1), jnp.float32(1), 4)
      quantized = trees.put(quantized, f'{name}/quantizer', quantizer)
    rewrite = functools.partial(precisions.rewrite, precision=precisions.Precision(4, 4, 'static'), learned=False)
    quantized = networks.quick_jit(rewrite)(quantized)
    records = outliers.histograms(params, quantized, networks.config('llama'), tokens)
    return {(record['path'], record['quantity'], record['stage']): record for record in records}

  def test_both_stages_count_all_values_on_the_same_edges(self):
    records = self._histograms(networks.tokens(3))
    sizes = {(name, 'activation'): x[:1].size for name, x in _activations().items() if name.startswith('layers/')}
    sizes |= {(path, 'weight'): trees.get(networks.params('llama'), path)['kernel'].size for path in _analysis()[1]}
    self.assertEqual({key[:2] for key in records}, set(sizes))
    for (path, quantity), size in sizes.items():
      before, after = (records[path, quantity, stage] for stage in ('before', 'after'))
      self.assertEqual(before['edges'], after['edges'])
      self.assertLen(before['edges'], len(before['counts']) + 1)
      self.assertEqual((sum(before['counts']), sum(after['counts'])), (size, size))
      self.assertEqual(before['edges'], sorted(before['edges']))
      self.assertNotEqual(before['counts'], after['counts'])
      if quantity == 'activation':
        self.assertLessEqual(np.count_nonzero(after['counts']), 16)

  def test_the_first_sequence_is_shown(self):
    two, one = (self._histograms(networks.tokens(3)[:rows]) for rows in (2, 1))
    self.assertEqual(two, one)


if __name__ == '__main__':
  absltest.main()
