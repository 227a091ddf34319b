"""Device layouts hold the codes where the unpacking of a word, emulated here bit by bit, leaves them."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import kernels
from kernels import prepack

_PACKED = [kernels.Layout.ROWS, kernels.Layout.INT4, kernels.Layout.INT4_WIDE]


def _codes(inputs, outputs, bits=4, seed=0):
  """int8 [inputs, outputs] that hold every code."""
  rng = np.random.default_rng(seed)
  codes = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (inputs, outputs))
  every = np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1))[: codes.size]
  codes.flat[: every.size] = every
  return codes.astype(np.int8)


def _words(weights):
  """The rows of a layout as little-endian 32-bit words."""
  return np.ascontiguousarray(weights).view('<u4')


def _bytes(words):
  """Signed bytes of words, in the order of memory."""
  return np.ascontiguousarray(words.astype('<u4')).view(np.int8)


class LayoutTest(parameterized.TestCase):

  @parameterized.product(layout=list(kernels.Layout), size=[(128, 128), (256, 128), (70, 3), (1, 1), (384, 130)])
  def test_unpack_inverts_prepack(self, layout, size):
    codes = _codes(*size)
    packed = jax.jit(prepack.prepack, static_argnums=1)(codes, layout)
    self.assertEqual(packed.shape, prepack.shape(layout, *size))
    self.assertEqual(packed.dtype, jnp.int8)
    np.testing.assert_array_equal(prepack.unpack(packed, layout, size), codes)

  @parameterized.parameters(*_PACKED)
  def test_padding_is_zero(self, layout):
    packed = prepack.prepack(jnp.asarray(_codes(70, 3) | 1), layout)
    whole = np.asarray(prepack.unpack(packed, layout, (prepack.padded(70), prepack.padded(3))))
    np.testing.assert_array_equal(whole[:70, :3], _codes(70, 3) | 1)
    self.assertEqual(np.count_nonzero(whole), 70 * 3)

  def test_rows_hold_codes_of_eight_bits(self):
    codes = _codes(256, 5, bits=8)
    packed = np.asarray(prepack.prepack(jnp.asarray(codes), kernels.Layout.ROWS))
    np.testing.assert_array_equal(packed[:5], codes.T)

  @parameterized.parameters(*kernels.Layout)
  def test_leading_axes_are_those_of_a_stack(self, layout):
    codes = np.stack([_codes(70, 3, seed=seed) for seed in range(4)]).reshape(2, 2, 70, 3)
    stacked = prepack.prepack(jnp.asarray(codes), layout)
    np.testing.assert_array_equal(stacked[1, 0], prepack.prepack(jnp.asarray(codes[1, 0]), layout))

  def test_two_masks_make_eight_bit_operands_of_a_word(self):
    codes = _codes(256, 128)
    words = _words(prepack.prepack(jnp.asarray(codes), kernels.Layout.INT4))
    low, high = (_bytes(w & np.uint32(0xF0F0F0F0)).reshape(128, -1, 1, 32) for w in (words << np.uint32(4), words))
    np.testing.assert_array_equal(np.concatenate([low, high], axis=2).reshape(128, 256), 16 * codes.T)

  def test_masks_make_codes_above_eight_of_a_word(self):
    codes = _codes(256, 128)
    words = _words(prepack.prepack(jnp.asarray(codes), kernels.Layout.INT4)) ^ np.uint32(0x88888888)
    low, high = (_bytes(w & np.uint32(0x0F0F0F0F)).reshape(128, -1, 1, 32) for w in (words, words >> np.uint32(4)))
    np.testing.assert_array_equal(np.concatenate([low, high], axis=2).reshape(128, 256), codes.T + 8)

  def test_codes_above_eight_are_small_floats_of_eight_bits(self):
    # The bit pattern u of e4m3 is the number u / 512, for u below 8 as a subnormal one.
    values = np.arange(16, dtype=np.uint8).view(jnp.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(values, np.arange(16) / 512)

  def test_masks_make_pairs_of_sixteen_bit_operands_of_a_word(self):
    codes = _codes(256, 128)
    words = _words(prepack.prepack(jnp.asarray(codes), kernels.Layout.INT4_WIDE)) ^ np.uint32(0x88888888)
    got = np.empty((128, 256), np.float32)
    for pair in range(4):
      # bfloat16 0x4300 is 128, and its last bit counts ones.
      halves = np.ascontiguousarray(((words >> np.uint32(4 * pair)) & np.uint32(0x000F000F)) | np.uint32(0x43004300))
      values = halves.view(jnp.bfloat16).astype(np.float32) - 136
      for thread in range(4):
        for element in range(2):
          got[:, 8 * pair + 2 * thread + element :: 32] = values.reshape(128, -1, 4, 2)[:, :, thread, element]
    np.testing.assert_array_equal(got, codes.T)

  def test_refuses_codes_that_are_not_int8(self):
    with self.assertRaisesRegex(ValueError, r'layouts are made of int8 codes .*, not int16 \[128, 128\]'):
      prepack.prepack(jnp.zeros((128, 128), jnp.int16), kernels.Layout.INT4)


class SumsTest(parameterized.TestCase):

  @parameterized.product(groups=[1, 4], offset=[False, True])
  def test_a_static_offset_folds_into_the_bias(self, groups, offset):
    rng = np.random.default_rng(0)
    codes, bias = _codes(64, 9), rng.normal(size=9).astype(np.float32)
    scale = rng.uniform(0.5, 1, (groups, 9)).astype(np.float32)
    w_offset = rng.normal(size=(groups, 9)).astype(np.float32) if offset else None
    values = codes * np.repeat(np.float64(scale), 64 // groups, axis=0)
    values += np.repeat(w_offset, 64 // groups, axis=0) if offset else 0
    sums = prepack.column_sums(jnp.asarray(codes), scale, w_offset)
    np.testing.assert_allclose(sums, values.sum(axis=0), rtol=1e-5, atol=1e-4)
    folded = prepack.fold_offset(bias, jnp.float32(-1.25), sums)
    np.testing.assert_allclose(folded, bias - 1.25 * values.sum(axis=0), rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(prepack.fold_offset(None, jnp.float32(-1.25), sums), -1.25 * sums)

  @parameterized.parameters(*_PACKED)
  def test_layouts_give_the_products_of_plain_codes(self, layout):
    rng = np.random.default_rng(0)
    x, w = rng.integers(-8, 8, (3, 150)).astype(np.int8), jnp.asarray(_codes(150, 9))
    scales = jnp.float32(0.5), jnp.asarray(rng.uniform(0.5, 1, (3, 9)), jnp.float32)
    call = jax.jit(kernels.quantized_matmul, static_argnames=('layout', 'implementation'))
    for implementation in kernels.IMPLEMENTATIONS:
      want = call(x, w, *scales, implementation=implementation)
      packed = prepack.prepack(w, layout)
      np.testing.assert_array_equal(call(x, packed, *scales, layout=layout, implementation=implementation), want)


if __name__ == '__main__':
  absltest.main()
