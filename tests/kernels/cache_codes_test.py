"""Operands of codes, which threads of NumPy make: every code exactly, and features in one order wherever they meet."""

import functools
import operator
import types
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np

from kernels.mosaic import cache_codes
from kernels.mosaic import threads

# What is tested is below what attention calls: products, whose operands these are, need a GPU.
# pylint: disable=protected-access
_THREADS, _FEATURES = np.arange(128, dtype=np.uint32), 128


class _Register:
  """What each thread has in a register: a word [128], or a vector [128, n]."""

  def __init__(self, numbers):
    self.numbers = numbers


class _Array:
  """In the place of `mgpu.FragmentedArray`."""

  def __init__(self, *, _registers, _layout, _is_signed=None):
    del _is_signed
    self.registers, self.layout = _registers, _layout

  @classmethod
  def splat(cls, value, shape, layout):
    return cls(_registers=np.full(layout.registers_shape(shape), value, object), _layout=layout)


class _Memory:
  """A reference to memory."""

  def __init__(self, numbers):
    self.numbers, self.shape, self.dtype, self.type = numbers, numbers.shape, numbers.dtype, mock.Mock()


def _on_words(function):
  return lambda *words: _Register(function(*(word.numbers for word in words)))


def _constant(value: int):
  return _Register(np.full(128, value, np.uint32))


def _multiplied_and_added(word, factor: int, addend: int):
  """Of pairs of bfloat16, rounded once."""
  a, b, c = (_pairs(word).astype(np.float64) for word in (word, _constant(factor), _constant(addend)))
  return _Register((a * b + c).astype(jnp.bfloat16).view(np.uint32)[:, 0])


def _pairs(word):
  return word.numbers[:, None].view(jnp.bfloat16)


def _load_matrices(memory, address, transposed):
  """Four words of a thread, as `threads.load_matrices` describes the transposed instruction."""
  assert transposed
  lane, warp = _THREADS % 32, _THREADS // 32
  for matrix in range(4):
    # The two slots and the unit of 16 bits that a lane has.
    row = lambda i, matrix=matrix: address.numbers[32 * warp + 8 * matrix + 2 * (lane % 4) + i]
    places = np.stack([row(i) + 2 * (lane // 4) + byte for i in range(2) for byte in range(2)], axis=-1)
    yield _Register(memory[places].view(np.uint32)[:, 0])


def _vector_load(kind, memory, places):
  del kind
  return _Register(memory.numbers[places[0].numbers[:, None] + np.arange(2)])


def _vector_store(register, memory, places):
  memory.numbers[places[0].numbers[:, None] + np.arange(2)] = register.numbers


def _elements(layout, shape):
  """Which elements of an array lie in its registers: [registers, threads, neighbors]."""
  strides = tuple(np.cumprod((1, *shape[:0:-1]))[::-1])
  elements = np.arange(np.prod(shape))
  tiled = np.lib.stride_tricks.as_strided(
      elements, layout.tiling.tile_shape(shape), [8 * stride for stride in layout.tiling.tile_strides(strides)])
  lanes = [dim for dim in layout.lane_dims if isinstance(dim, int)]
  first = [*layout.warp_dims, *lanes, layout.vector_dim]
  rest = [dim for dim in range(-tiled.ndim, 0) if dim not in first]
  tiled = tiled.transpose([dim % tiled.ndim for dim in (*rest, *first)])
  tiled = tiled.reshape(-1, 4, np.prod(tiled.shape[-1 - len(lanes) : -1]), tiled.shape[-1])
  return np.repeat(tiled, 32 // tiled.shape[2], axis=2).reshape(len(tiled), 128, -1)  # what is replicated comes last


def _put(array, shape, numbers_of=lambda register: register.numbers):
  """The array of what threads have of it."""
  elements = _elements(array.layout, shape)
  numbers = [numbers_of(register) for register in array.registers.flat]
  found = np.zeros(shape, numbers[0].dtype)
  found.flat[elements] = np.stack(numbers)
  np.testing.assert_array_equal(found.flat[elements], np.stack(numbers))  # replicas agree
  return found


def _taken(layout, numbers, word=False):
  """What threads have of an array: vectors, or words of four bytes."""
  parts = numbers.reshape(-1)[_elements(layout, numbers.shape)]
  registers = np.empty(len(parts), object)
  registers[:] = [_Register(part.view(np.uint32)[:, 0] if word else part) for part in parts]
  return _Array(_registers=registers.reshape(layout.registers_shape(numbers.shape)), _layout=layout)


class CacheCodesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    words = {name: _on_words(function) for name, function in dict(
        addi=operator.add, muli=operator.mul, andi=operator.and_, xori=operator.xor, shrui=operator.rshift,
        divui=operator.floordiv, remui=operator.mod).items()}
    known = types.SimpleNamespace(**vars(threads) | dict(
        number=lambda: _Register(_THREADS), constant=_constant, held=_constant, index=lambda word: word,
        element=lambda register, place: _Register(register.numbers[:, place]),
        multiply_add_pairs=_multiplied_and_added))
    llvm = types.SimpleNamespace(ptrtoint=lambda kind, address: address)
    fakes = dict(
        arith=types.SimpleNamespace(**words), ir=mock.MagicMock(), threads=known,
        mgpu=types.SimpleNamespace(FragmentedArray=_Array, c=mock.Mock()),
        utils=types.SimpleNamespace(
            llvm=llvm, thread_idx=known.number, bitcast=lambda word, kind: word, c=mock.Mock(),
            memref_ptr=lambda memory: _constant(0)),
        vector=types.SimpleNamespace(
            load=_vector_load, store=_vector_store,
            from_elements=lambda kind, words: _Register(np.stack([word.numbers for word in words], axis=-1))))
    known.i32 = mock.Mock()
    self.enter_context(mock.patch.multiple(cache_codes, **fakes))
    self.enter_context(
        mock.patch.object(plgpu, 'inline_mgpu', lambda **_: lambda function: functools.partial(function, None)))

  def _order(self, features):
    """The features that the rows of an operand stand for, as `load` has them."""
    return _put(cache_codes.load(_Memory(np.arange(features))), (features,))

  def _codes(self, slots):
    codes = np.random.default_rng(0).permutation(np.arange(slots * _FEATURES) % 256).astype(np.uint8).view(np.int8)
    return codes.reshape(slots, _FEATURES)

  @parameterized.parameters(64, 128)
  def test_keys(self, slots):
    codes = self._codes(slots)
    array = _taken(plgpu.Layout.WGMMA_8BIT.to_mgpu(), codes, word=True)
    array.shape = codes.shape
    got = _put(cache_codes._of_keys(array), codes.shape, _pairs)
    np.testing.assert_array_equal(
        got.astype(np.float64), codes[:, self._order(_FEATURES)] / cache_codes._FACTOR)

  @parameterized.parameters(64, 128)
  def test_values(self, slots):
    codes = self._codes(slots)
    # Units of 16 bytes as copies that swizzle 128 leave them.
    units = codes.reshape(slots, 8, 16)
    slot = np.arange(slots)[:, None]
    memory = units[slot, np.arange(8) ^ slot % 8].reshape(-1)
    cache_codes.threads.load_matrices = functools.partial(_load_matrices, memory)
    got = _put(cache_codes._of_values(_Memory(codes)), codes.shape[::-1], _pairs)
    np.testing.assert_array_equal(
        got.astype(np.float64), codes[:, self._order(_FEATURES)].T / cache_codes._FACTOR)

  def test_halves_are_in_the_order_of_the_whole(self):
    order, half = self._order(_FEATURES), self._order(_FEATURES // 2)
    np.testing.assert_array_equal(order, [*half, *half + _FEATURES // 2])
    np.testing.assert_array_equal(np.sort(half), np.arange(_FEATURES // 2))

  def test_what_is_loaded_is_stored_where_it_was(self):
    numbers = np.random.default_rng(0).normal(size=_FEATURES)
    stored = _Memory(np.zeros(_FEATURES))
    array = cache_codes.load(_Memory(numbers))
    array.shape = numbers.shape
    cache_codes.store(array, stored)
    np.testing.assert_array_equal(stored.numbers, numbers)


if __name__ == '__main__':
  absltest.main()
