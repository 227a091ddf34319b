"""Taps: every point reports, whatever transforms the model, and none is computed in vain."""

import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant.layers import tap
from jaxquant.models import staging
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from tests import networks

_IDENTITY = (tap.Tap('.*', lambda x: x),)


def _quantized(style: str) -> dict:
  """The tree of networks.params with a quantizer at every site."""
  params = networks.params(style)
  for i, site in enumerate(staging.model_sites(networks.config(style))):
    quantizer = quantizers.ClipQuantizer(jnp.float32(-0.5 - i), jnp.float32(1), 4)
    params = trees.put(params, f'{site.name}/quantizer', quantizer)
  return params


@functools.cache
def _recorded(style: str, remat: bool = False) -> dict:
  """The activations at all points of the quantized network."""
  config = dataclasses.replace(networks.config(style), remat=remat)
  model = staging.make(config, taps=_IDENTITY)
  apply = networks.quick_jit(functools.partial(model.apply, mutable=[tap.COLLECTION]))
  _, recorded = apply({'params': _quantized(style)}, networks.tokens(2))
  return tap.by_point(recorded[tap.COLLECTION])


def _points(style: str) -> set[str]:
  """The names of all points: both sides of every site and operand, and the output of every linear but embeddings."""
  gate = ('mlp/gate',) if style == 'llama' else ()
  blocks = ('attention/q', 'attention/k', 'attention/v', 'attention/o', *gate, 'mlp/up', 'mlp/down')
  head = ('transform', 'head') if style == 'bert' else ('head',)
  sites = ('layers/0/attention', 'layers/0/attention/o', 'layers/0/mlp', 'layers/0/mlp/down', *head)
  operands = {f'layers/0/attention/{side}{name}' for side in ('', 'quantized_') for name in ('query', 'key', 'value')}
  return operands | {f'layers/0/{path}/output' for path in blocks} | {f'{path}/output' for path in head} | {
      f'{site}/{side}' for site in sites for side in ('input', 'quantized_input')}


class _Nested(nn.Module):
  """A module below another, both with one point."""

  taps: tuple[tap.Tap, ...]
  depth: int = 1

  @nn.compact
  def __call__(self, x):
    tap.record(self, self.taps, 'input', lambda: x)
    return _Nested(self.taps, self.depth - 1, name='inner')(x + 1) if self.depth else x


class TapTest(parameterized.TestCase):

  @parameterized.product(style=list(networks.STYLES), remat=[False, True])
  def test_every_site_and_linear_reports_under_jit_and_rematerialization(self, style, remat):
    recorded = _recorded(style, remat)
    self.assertEqual(set(recorded), _points(style))
    for name, value in recorded.items():
      np.testing.assert_allclose(value, _recorded(style)[name], rtol=1e-5, atol=1e-5)

  @parameterized.parameters(*networks.STYLES)
  def test_both_sides_of_a_site_are_what_enters_and_leaves_its_quantizer(self, style):
    recorded = _recorded(style)
    for site in staging.model_sites(networks.config(style)):
      quantizer = trees.get(_quantized(style), site.name)['quantizer']
      after = recorded[site.name.removesuffix('input') + 'quantized_input']
      np.testing.assert_allclose(after, quantizer(recorded[site.name]), atol=1e-6)
      self.assertGreater(np.abs(after - recorded[site.name]).max(), 0.01)

  def test_a_linear_with_a_specification_of_its_own_reports_both_sides_behind_its_site(self):
    config, path = networks.config('llama'), 'layers/0/attention/q'
    params = trees.put(networks.params('llama'), f'{path}/input', {'scale': jnp.full(16, 2.0)})
    model = staging.make(config, taps=_IDENTITY)
    apply = networks.quick_jit(functools.partial(model.apply, mutable=[tap.COLLECTION]))
    recorded = tap.by_point(apply({'params': params}, networks.tokens(2))[1][tap.COLLECTION])
    self.assertEqual(set(recorded) - _points('llama'), {f'{path}/input', f'{path}/quantized_input'})
    np.testing.assert_array_equal(recorded[f'{path}/input'], recorded['layers/0/attention/quantized_input'])
    np.testing.assert_array_equal(recorded[f'{path}/quantized_input'], recorded[f'{path}/input'] / 2)

  def test_output_is_what_the_linear_returns(self):
    recorded = _recorded('opt')
    layer = trees.get(networks.params('opt'), 'layers/0/mlp/up')
    want = recorded['layers/0/mlp/quantized_input'] @ layer['kernel'] + layer['bias']
    np.testing.assert_allclose(recorded['layers/0/mlp/up/output'], want, atol=1e-5)


class RecordTest(absltest.TestCase):

  def _record(self, *taps: tap.Tap) -> dict:
    _, recorded = _Nested(taps).apply({}, jnp.float32(5), mutable=[tap.COLLECTION])
    return tap.by_point(recorded.get(tap.COLLECTION, {}))

  def test_points_are_named_by_path(self):
    self.assertEqual(self._record(tap.Tap('.*', lambda x: x)), {'input': 5, 'inner/input': 6})

  def test_the_first_tap_that_matches_wins(self):
    taps = tap.Tap('inner/.*', lambda x: -x), tap.Tap('.*', lambda x: x)
    self.assertEqual(self._record(*taps), {'input': 5, 'inner/input': -6})
    self.assertEqual(self._record(*taps[::-1]), {'input': 5, 'inner/input': 6})

  def test_a_pattern_has_to_match_the_whole_name(self):
    self.assertEqual(self._record(tap.Tap('input', lambda x: x)), {'input': 5})
    self.assertEmpty(self._record(tap.Tap('inner', lambda x: x)))

  def test_a_statistic_may_be_a_tree(self):
    self.assertEqual(self._record(tap.Tap('input', lambda x: {'a': x, 'b': [x]})), {'input': {'a': 5, 'b': [5]}})

  def test_nothing_is_computed_unless_the_collection_is_recorded(self):
    calls = []
    module = _Nested((tap.Tap('.*', calls.append),))
    self.assertEqual(module.apply({}, jnp.float32(5)), 6)
    self.assertEmpty(module.init(jax.random.key(0), jnp.float32(5)))
    self.assertEmpty(calls)
    module.apply({}, jnp.float32(5), mutable=[tap.COLLECTION])
    self.assertLen(calls, 2)


if __name__ == '__main__':
  absltest.main()
