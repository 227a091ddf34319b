"""Checksums of arrays that depend on values and positions alone, computed where the arrays are.

The checksum of an array is the sum modulo 2^32, over its elements i, of mix(w_i + mix(i)), where w_i holds the bits of
element i as an unsigned 32-bit word and `mix` is a bijection of the 32-bit words.

  * A sum of integers modulo 2^32 has the same value in any order. So every sharding, number of devices or processes and
    backend gives the same checksum, and no element leaves its device.
  * Whatever changes within one element changes the checksum: w_i -> w_i + mix(i) -> mix(.) is injective and no other
    term of the sum moves. A flipped bit is the smallest such change. (A 64-bit element is two words, and this holds
    for each of them.)
  * Changes of several elements, elements that trade places and zeroed blocks go unnoticed with probability 2^-32, as
    `mix` scatters every term over all words. (A sum of w_i * m_i with odd m_i would never notice two changed signs:
    2^31 * m is 2^31 for every odd m.)

This guards against storage that decays, not against somebody who wants to fool it.
"""

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from jaxquant.numerics import trees


def checksum(tree: Any) -> dict[str, int]:
  """The checksums of all arrays of a tree.

  Args:
    tree: a pytree of arrays of booleans, integers and floats of 2 to 64 bits, and of typed PRNG keys. In a run of
      several processes the arrays are global and every process calls this.

  Returns:
    By path (`layers/0/q/kernel/codes`) a number of 32 bits. Shapes and dtypes are not part of it: compare them too.
  """
  # One array at a time: dozens of collectives under way can lock up devices that are threads of a CPU of few cores.
  return {path: int(_checksum(key_data(leaf))) for path, leaf in trees.arrays(tree).items()}


def is_key(array: Any) -> bool:
  """Whether `array` (or a ShapeDtypeStruct) consists of typed PRNG keys."""
  return jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key)


def key_data(array: Any) -> Any:
  """The words of typed PRNG keys, and any other array as it is."""
  return jax.random.key_data(array) if is_key(array) else array


@jax.jit
def _checksum(array):
  words = _words(array)
  index, stride = jnp.zeros(words.shape, jnp.uint32), 1
  # XLA fuses the index into the sum: neither it nor the mixed words are ever written to memory.
  for axis in reversed(range(words.ndim)):
    index += lax.broadcasted_iota(jnp.uint32, words.shape, axis) * np.uint32(stride % 2**32)
    stride *= words.shape[axis]
  return jnp.sum(_mix(words + _mix(index)), dtype=jnp.uint32)


def _words(array):
  """The bits of every element as one uint32; as two, along a new last axis, for elements of 64 bits."""
  if array.dtype.itemsize == 8:
    return lax.bitcast_convert_type(array, jnp.uint32)
  if jnp.issubdtype(array.dtype, jnp.floating):
    array = lax.bitcast_convert_type(array, jnp.dtype(f'uint{jnp.finfo(array.dtype).bits}'))
  return array.astype(jnp.uint32)


def _mix(words):
  # The finalizer with the least bias that Wellons' search found ("lowbias32"); xorshifts and odd factors are bijective.
  words = (words ^ (words >> 16)) * np.uint32(0x7FEB352D)
  words = (words ^ (words >> 15)) * np.uint32(0x846CA68B)
  return words ^ (words >> 16)
