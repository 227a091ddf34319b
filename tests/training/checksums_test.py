"""Tests of jaxquant.training.checksums."""

import os
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant.training import checksums
from tests import compiling
from tests import source

_DTYPES = (
    'bool', 'int4', 'uint4', 'int8', 'uint8', 'int16', 'int32', 'uint32', 'int64', 'float8_e4m3fn', 'bfloat16',
    'float16', 'float32', 'float64')
_SHARDED = """
import jax, numpy as np
from jaxquant.training import checksums
mesh = jax.make_mesh((2, 4), ('a', 'b'))
P = jax.sharding.PartitionSpec
values = np.arange(16 * 24).reshape(16, 24) ** 2
for dtype in (np.float32, jax.numpy.int4):
  for spec in (P(), P('a'), P('b', 'a'), P(None, ('a', 'b'))):
    array = jax.device_put(values.astype(dtype), jax.sharding.NamedSharding(mesh, spec))
    print(len(array.devices()), checksums.checksum(array)[''])
"""
# More collectives than XLA lets be under way on a device of a CPU, on more devices than a small machine has cores.
_MANY_SHARDED = """
import jax, numpy as np
from jaxquant.numerics import trees
from jaxquant.training import checksums
array = jax.device_put(np.ones((16, 24)), jax.NamedSharding(jax.make_mesh((8,), ('a',)), jax.P('a')))
tree = {str(i): array for i in range(300)}
trees.check_finite(tree)
print(len(checksums.checksum(tree)))
"""


def _random(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
  """An array of random bits: among floats also NaNs of all kinds, infinities and denormals."""
  generator = np.random.default_rng(0)
  if dtype in ('bool', 'int4', 'uint4'):
    return generator.integers(0, 2 if dtype == 'bool' else 16, shape).astype(np.uint8).astype(jnp.dtype(dtype))
  dtype = jnp.dtype(dtype)
  return np.frombuffer(generator.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)


def _reference(array: np.ndarray) -> int:
  """What the module's docstring defines, in Python's integers, one word after the other."""

  def mix(word):
    word = (word ^ word >> 16) * 0x7FEB352D % 2**32
    word = (word ^ word >> 15) * 0x846CA68B % 2**32
    return word ^ word >> 16

  if array.dtype.itemsize == 8:
    words = np.ascontiguousarray(array).view(np.uint32)
  elif array.dtype.name in ('int4', 'uint4') or np.issubdtype(array.dtype, np.signedinteger):
    words = array.astype(np.int64)
  else:
    words = np.ascontiguousarray(array).view(f'u{array.dtype.itemsize}')
  return sum(mix((int(word) + mix(i)) % 2**32) for i, word in enumerate(words.ravel())) % 2**32


def _run_on_eight_devices(program: str) -> str:
  """The output of a program in Python."""
  environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': compiling.on_devices(8)}
  return subprocess.run(
      [sys.executable, '-c', program], cwd=source.ROOT, env=environment, stdout=subprocess.PIPE, text=True,
      check=True).stdout


def _checksum(array) -> int:
  return checksums.checksum(array)['']


class ChecksumsTest(parameterized.TestCase):

  @parameterized.parameters(*_DTYPES)
  def test_equals_definition(self, dtype):
    with jax.enable_x64(True):
      for shape in ((2, 3, 4), ()):
        array = _random(dtype, shape)
        self.assertEqual(_checksum(jnp.asarray(array)), _reference(array))

  @parameterized.parameters('int8', 'bfloat16', 'float32', 'float64')
  def test_every_flipped_bit_changes_it(self, dtype):
    array = _random(dtype, (2, 3))
    with jax.enable_x64(True):
      intact = _checksum(jnp.asarray(array))
      for bit in range(8 * array.nbytes):
        flipped = bytearray(array.tobytes())
        flipped[bit // 8] ^= 1 << bit % 8
        damaged = np.frombuffer(flipped, array.dtype).reshape(array.shape)
        self.assertNotEqual(_checksum(jnp.asarray(damaged)), intact, bit)

  def test_two_changed_signs_exchanged_and_zeroed_elements_change_it(self):
    array = np.random.default_rng(1).standard_normal((32, 32)).astype(np.float32)
    signs, exchanged, zeroed = array.copy(), array.copy(), array.copy()
    signs[3, 4:6] *= -1
    exchanged[[3, 9]] = exchanged[[9, 3]]
    zeroed[16:] = 0
    values = [_checksum(jnp.asarray(a)) for a in (array, signs, exchanged, zeroed, array.T)]
    self.assertLen(set(values), len(values))

  def test_is_the_same_on_every_sharding(self):
    output = _run_on_eight_devices(_SHARDED)
    values = np.arange(16 * 24).reshape(16, 24) ** 2
    expected = [_checksum(jnp.asarray(values.astype(dtype))) for dtype in (np.float32, jnp.int4) for _ in range(4)]
    self.assertEqual(output.split(), ' '.join(f'8 {value}' for value in expected).split())

  def test_many_sharded_arrays_do_not_lock_up_the_devices(self):
    self.assertEqual(_run_on_eight_devices(_MANY_SHARDED), '300\n')

  def test_names_arrays_by_path_and_takes_random_keys(self):
    key = jax.random.key(3)
    tree = {'a': {'b': (jnp.ones(2), None)}, 'key': key}
    expected = {'a/b/0': _checksum(jnp.ones(2)), 'key': _checksum(jax.random.key_data(key))}
    self.assertEqual(checksums.checksum(tree), expected)


if __name__ == '__main__':
  absltest.main()
