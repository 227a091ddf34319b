"""A cache of 16-bit numbers, which matrix instructions read from shared memory as they are.

The functions are those of `cache_codes`: what attention does with either is the same.
"""

from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels.mosaic import tiles

_OF_ROWS = plgpu.Layout.WGMMA.reduce(1)


def load(ref):
  """An array of a reference, in the layout that an accumulator has for its rows."""
  return tiles.load(ref, _OF_ROWS, optimized=False)


def store(array, ref) -> None:
  """Stores an array in this layout."""
  ref[...] = array


def token(key, value, dtype, scratch):
  """What becomes of a token's key and value: of each (parts as the cache will have them, what is stored, no scale).

  Args:
    key, value: lists of arrays of features.
    dtype, scratch: of no use here.
  """
  del dtype, scratch
  return (key, key, None), (value, value, None)


def by_keys(total, tile, queries):
  """Adds the products of a tile of keys with queries.

  Args:
    total: float32 [slots, columns], in the layout of an accumulator.
    tile: reference to [slots, features].
    queries: reference to [columns, features].
  """
  return multiplied(total, tile, queries.T)


def by_values(total, tile, weights):
  """Adds the products of a tile of values with weights.

  Args:
    total: float32 [features, columns], in the layout of an accumulator.
    tile: reference to [slots, features].
    weights: reference to [columns, slots].
  """
  return multiplied(total, tile.T, weights.T)


def multiplied(total, a, b):
  """`total` and the product of two references to shared memory."""
  return pl.run_state(lambda accumulator: plgpu.wgmma(accumulator, a, b))(plgpu.ACC.init(total))


def factor(scales, shape):
  """What the operand of each slot has to be multiplied by."""
  del scales, shape
  return 1.0
