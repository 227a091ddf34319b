"""Blocks that are alike share a trace, and taps read each of them as if it had one of its own."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from jaxquant.layers import tap
from jaxquant.models import blocks
from jaxquant.models import staging
from tests import networks


_LAYERS = 2


def _read(style: str, *patterns: str) -> dict:
  """What taps read by point: the k-th pattern its activations times k + 1."""
  taps = tuple(tap.Tap(pattern, lambda x, k=k: x * (k + 1)) for k, pattern in enumerate(patterns))
  model = staging.make(networks.config(style, layers=_LAYERS), taps=taps)
  params = networks.params(style, layers=_LAYERS)
  _, recorded = model.apply({'params': params}, networks.tokens(2), mutable=[tap.COLLECTION])
  return tap.by_point(recorded.get(tap.COLLECTION, {}))


class TracesTest(parameterized.TestCase):

  @parameterized.parameters(*networks.STYLES)
  def test_every_point_of_a_block_is_read(self, style):
    config, params = networks.config(style, layers=_LAYERS), networks.params(style, layers=_LAYERS)['layers']['1']
    block = blocks.Block(config, taps=(tap.Tap('.*', lambda x: x),), opening=blocks.opens_with_norm(config, 1))
    alone = block.apply({'params': params}, np.ones((2, 4, config.width), config.compute_dtype),
                        mutable=[tap.COLLECTION])[1]
    want = {f'layers/1/{name}' for name in tap.by_point(alone[tap.COLLECTION])}
    self.assertEqual({name for name in _read(style, '.*') if name.startswith('layers/1/')}, want)

  def test_a_pattern_may_tell_blocks_apart(self):
    every = _read('llama', '.*')
    inputs = ('mlp/input', 'mlp/down/input')
    found = _read('llama', 'layers/1/mlp/(down/)?input', 'layers/./mlp/input')
    want = {'layers/0/mlp/input': 2, **{f'layers/1/{name}': 1 for name in inputs}}
    self.assertEqual(set(found), set(want))
    for name, factor in want.items():
      np.testing.assert_array_equal(found[name], every[name] * factor, name)

  def test_alike_blocks_are_traced_once(self):
    traced = []
    call = blocks.MLP.__call__

    def count(self, x):
      traced.append(self.path)
      return call(self, x)

    with mock.patch.object(blocks.MLP, '__call__', count):
      _read('llama', '.*/input')
    self.assertLen(traced, 1)


if __name__ == '__main__':
  absltest.main()
