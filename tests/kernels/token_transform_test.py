"""A transform in registers, by an emulation of the instructions that it emits, is that of XLA, wherever tokens lie."""

import contextlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from kernels import before
from kernels.mosaic import mma
from kernels.mosaic import thread_memory
from kernels.mosaic import token_arithmetic
from kernels.mosaic import token_blocks
from kernels.mosaic import token_registers
from kernels.mosaic import token_transform
from tests import emulation

_LANES = np.arange(32)


def _halves(words):
  """float32 [..., 2] of words of two bfloat16."""
  words = np.asarray(words, np.uint32)
  return np.stack([words << 16, words & np.uint32(0xFFFF0000)], -1).view(np.float32)


def _instruction(dtype, words, sums):
  """mma.m16n8k16 of bfloat16 for four warps, by the tables of operands in the PTX manual; a word is of 128 threads."""
  assert dtype == jnp.bfloat16
  words = [np.broadcast_to(word, 128).reshape(4, 32) for word in words]
  group, pair = _LANES // 4, 2 * (_LANES % 4)
  a, b = np.zeros((4, 16, 16), np.float32), np.zeros((4, 16, 8), np.float32)
  for i, word in enumerate(words[:4]):
    for place in range(2):
      a[:, group + 8 * (i % 2), pair + place + 8 * (i // 2)] = _halves(word)[..., place]
  for i, word in enumerate(words[4:]):
    for place in range(2):
      b[:, pair + place + 8 * i, group] = _halves(word)[..., place]
  total = a @ b
  return [before + total[:, group + 8 * (i // 2), pair + i % 2].reshape(128) for i, before in enumerate(sums)]


def _rounded(dtype, first, second):
  bits = [np.asarray(number).astype(dtype).view(np.uint16).astype(np.uint32) for number in (first, second)]
  return bits[0] | bits[1] << 16


def _store(numbers, size, scratch, thread):
  for first in range(0, len(numbers), size):
    for i in range(size):
      scratch[first * 128 + thread * size + i] = numbers[first + i]


def _load(scratch, thread, first, size):
  return [scratch[first * 128 + thread * size + i] for i in range(size)]


@contextlib.contextmanager
def _emulated():
  """What the transform emits, done to arrays."""
  with mock.patch.object(mma, 'instruction', _instruction), mock.patch.object(token_arithmetic, 'rounded', _rounded):
    with mock.patch.multiple(thread_memory, store=_store, load=_load):
      with emulation.emulated(token_transform, _number=lambda value: np.full(128, value, np.float32)):
        yield


def _features(places):
  """Which feature each number of a thread is: [128, numbers]."""
  per_load = np.arange(places.features).reshape(-1, 4, places.inner, 32, places.width)
  return per_load.transpose(1, 3, 0, 2, 4).reshape(128, -1)


def _transform(x, places, block):
  """float32 [K] by the emulation."""
  numbers = list(np.asarray(x, np.float32)[_features(places)].T)
  terms = {jnp.bfloat16: 1, jnp.float16: 2, jnp.float32: 3}[x.dtype.type]
  numbers += [np.zeros(128, np.float32)] * (-len(numbers) % 8)
  with _emulated():
    tiles = [token_transform._bfloat16(numbers[i : i + 8], terms) for i in range(0, len(numbers), 8)]
    scratch = (np.zeros(places.features, np.float32),) if places.exchanged(block) else ()
    result = token_transform._transformed(tiles, places, block, terms, *scratch)
  y = np.empty(places.features, np.float32)
  y[_features(places.behind(block))] = np.stack(result, -1)
  return y


class TransformTest(parameterized.TestCase):

  @parameterized.parameters(
      *((4096, block) for block in (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)), (8192, 8192), (8192, 4096),
      (2048, 2048), (5120, 512), (5120, 1024), (6144, 2048), (1536, 64), (1536, 512), (768, 64), (768, 128), (768, 256),
      (11_008, 256), (4096, 64, jnp.float16), (768, 256, jnp.float16), *((*shape, jnp.float32) for shape in (
          (4096, 8), (4096, 2048), (768, 128), (11_008, 256))))
  def test_it_is_that_of_xla(self, features, block, dtype=jnp.bfloat16):
    token = jnp.asarray(np.random.default_rng(0).normal(size=features), dtype)
    places = token_registers.Places(features, *token_blocks.loads(features, features, block))
    got, want = _transform(np.asarray(token), places, block), before.rotated(token, block)
    np.testing.assert_allclose(got, want, rtol=0, atol=2.0 ** (-20 if dtype == jnp.float32 else -14))

  @parameterized.parameters(*(
      (features, block) for features in range(1024, 12_289, 1024) for block in (512, 1024, 2048)
      if features % block == 0))
  def test_what_crosses_warps_is_read_once_where_a_thread_can_have_four_loads(self, features, block):
    places = token_registers.Places(features, *token_blocks.loads(features, features, block))
    self.assertTrue(not places.exchanged(block) or places.behind(block) != places)

  @parameterized.product(features=[768, 4096, 5120, 11_008], block=[1, 64, 256], group_size=[8, 64, 128, 256])
  def test_groups_are_whole_in_the_runs_of_all_threads(self, features, block, group_size):
    width, inner = token_blocks.loads(features, group_size, block)
    for run in (128 * width, 128 * width * inner):
      self.assertEqual((features % run, run % group_size), (0, 0))


if __name__ == '__main__':
  absltest.main()
