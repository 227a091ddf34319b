"""A token's places in registers: a transform pairs the features that it should, wherever they lie."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from kernels.mosaic import token_registers

_PLACES = [token_registers.Places(4096, 8, inner) for inner in (1, 2, 4)] + [
    token_registers.Places(12_288, 8, 4), token_registers.Places(1536, 4, 1), token_registers.Places(1536, 2, 2)]


def _features(layout, *shape):
  """The feature in each place: [threads, loads, neighbors]; `shape` is that of the token as the layout has it."""
  tiling, features = layout.tiling, np.arange(np.prod(shape)).reshape(shape)
  tiled = np.lib.stride_tricks.as_strided(
      features, tiling.tile_shape(shape), [8 * s for s in tiling.tile_strides(tuple(s // 8 for s in features.strides))])
  first = [*layout.warp_dims, *layout.lane_dims]
  rest = [axis - tiled.ndim for axis in range(tiled.ndim) if axis - tiled.ndim not in (*first, layout.vector_dim)]
  return tiled.transpose([axis % tiled.ndim for axis in (*first, *rest, layout.vector_dim)]).reshape(
      128, -1, tiled.shape[layout.vector_dim])


class PlacesTest(parameterized.TestCase):

  @parameterized.parameters(*_PLACES)
  def test_distances_pair_features_that_differ_in_one_bit(self, places):
    features = _features(places.tiled(places.features), places.features)
    largest = places.features & -places.features
    distances = places.distances(largest)
    self.assertEqual(sum(map(len, distances.values())), largest.bit_length() - 1)
    bits = []
    for kind, distance in ((kind, distance) for kind, found in distances.items() for distance in found):
      self.assertLess(distance, {'lane': 32, 'thread': 128, 'number': features[0].size}[kind])
      if kind == 'number':
        others = features.reshape(128, -1)[:, np.arange(features[0].size) ^ distance].reshape(features.shape)
      else:
        others = features[np.arange(128) ^ distance]
      bit, = set((others ^ features).flat)
      bits.append(int(bit))
    self.assertCountEqual(bits, [1 << bit for bit in range(largest.bit_length() - 1)])

  @parameterized.parameters(*_PLACES)
  def test_groups_are_the_same_places(self, places):
    want = _features(places.tiled(places.features), places.features)
    for size in {8, 32, 64, 128, 256, 512, places.run} - {places.features}:
      rows = places.features // size
      np.testing.assert_array_equal(_features(places.tiled(size), rows, size), want)

  @parameterized.parameters(*(places for places in _PLACES if places.inner == 1))
  def test_strided_arrays_are_the_same_places(self, places):
    strided = np.arange(places.features).reshape(-1, 128, places.width).swapaxes(0, 1)
    np.testing.assert_array_equal(_features(places.tiled(places.features), places.features), strided)

  @parameterized.parameters(*_PLACES)
  def test_shared_memory_is_for_blocks_that_cross_warps(self, places):
    for block in (2, 64, 256, 512, 1024):
      self.assertEqual(places.exchanged(block), bool(places.distances(block)['thread']))


if __name__ == '__main__':
  absltest.main()
