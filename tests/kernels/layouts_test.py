"""Device layouts hold the codes where the unpacking of a word, emulated here bit by bit, leaves them."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import kernels
from kernels import dint
from kernels import integer_weights
from kernels import layouts

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


def _permuted(low, high, places):
  """What PTX calls prmt.b32: the low 4 nibbles of a word name bytes of two others, or, from 8 on, the sign of these."""
  source = np.frombuffer(np.array([low, high], '<u4').tobytes(), np.uint8)
  nibbles = (places[..., None] >> np.arange(0, 16, 4, dtype=np.uint32)) & 15
  found = source[nibbles & 7]
  found = np.where(nibbles & 8, np.where(found & 128, 255, 0), found).astype(np.uint8)
  return found.view('<u4')[..., 0]


def _bytes(words):
  """Signed bytes of words, in the order of memory."""
  return np.ascontiguousarray(words.astype('<u4')).view(np.int8)


class LayoutTest(parameterized.TestCase):

  @parameterized.product(layout=list(kernels.Layout), size=[(128, 128), (256, 128), (70, 3), (1, 1), (384, 130)])
  def test_unpack_inverts_prepack(self, layout, size):
    codes = _codes(*size) & (15 if layout is kernels.Layout.DINT4 else -1)
    packed = jax.jit(layouts.prepack, static_argnums=1)(codes, layout)
    self.assertEqual(packed.shape, layouts.shape(layout, *size))
    self.assertEqual(packed.dtype, jnp.int8)
    np.testing.assert_array_equal(layouts.unpack(packed, layout, size), codes)

  @parameterized.parameters(*_PACKED)
  def test_padding_is_zero(self, layout):
    packed = layouts.prepack(jnp.asarray(_codes(70, 3) | 1), layout)
    whole = np.asarray(layouts.unpack(packed, layout, (layouts.padded(70), layouts.padded(3))))
    np.testing.assert_array_equal(whole[:70, :3], _codes(70, 3) | 1)
    self.assertEqual(np.count_nonzero(whole), 70 * 3)

  def test_rows_hold_codes_of_eight_bits(self):
    codes = _codes(256, 5, bits=8)
    packed = np.asarray(layouts.prepack(jnp.asarray(codes), kernels.Layout.ROWS))
    np.testing.assert_array_equal(packed[:5], codes.T)

  @parameterized.parameters(*kernels.Layout)
  def test_leading_axes_are_those_of_a_stack(self, layout):
    codes = np.stack([_codes(70, 3, seed=seed) for seed in range(4)]).reshape(2, 2, 70, 3)
    codes = codes & 15 if layout is kernels.Layout.DINT4 else codes
    stacked = layouts.prepack(jnp.asarray(codes), layout)
    np.testing.assert_array_equal(stacked[1, 0], layouts.prepack(jnp.asarray(codes[1, 0]), layout))

  def test_two_masks_make_eight_bit_operands_of_a_word(self):
    codes = _codes(256, 128)
    words = _words(layouts.prepack(jnp.asarray(codes), kernels.Layout.INT4))
    low, high = (_bytes(w & np.uint32(0xF0F0F0F0)).reshape(128, -1, 1, 32) for w in (words << np.uint32(4), words))
    np.testing.assert_array_equal(np.concatenate([low, high], axis=2).reshape(128, 256), 16 * codes.T)

  def test_masks_make_codes_above_eight_of_a_word(self):
    codes = _codes(256, 128)
    words = _words(layouts.prepack(jnp.asarray(codes), kernels.Layout.INT4)) ^ np.uint32(0x88888888)
    low, high = (_bytes(w & np.uint32(0x0F0F0F0F)).reshape(128, -1, 1, 32) for w in (words, words >> np.uint32(4)))
    np.testing.assert_array_equal(np.concatenate([low, high], axis=2).reshape(128, 256), codes.T + 8)

  @parameterized.parameters(*range(integer_weights.MOST + 1))
  def test_one_multiplication_of_words_makes_eight_bit_operands_of_it(self, multiplier):
    # As registers.int4_times does it; padding is multiplied by 0.
    codes = _codes(256, 128)
    words = _words(layouts.prepack(jnp.asarray(codes), kernels.Layout.INT4))
    first = 0x80808080 - multiplier * 0x08080808
    parts = []
    for half in (words, words >> np.uint32(4)):
      above = ((half & np.uint32(0x0F0F0F0F)) ^ np.uint32(0x08080808)).astype(np.int64)
      self.assertLess((above * multiplier + first).max(), 2**32)
      product = (above * multiplier + first).astype(np.uint32)
      parts.append(_bytes(product ^ np.uint32(0x80808080)).reshape(128, -1, 1, 32))
    np.testing.assert_array_equal(np.concatenate(parts, axis=2).reshape(128, 256), multiplier * codes.T.astype(int))

  @parameterized.parameters((2, 13), (4, 13), (8, 5))
  def test_permutations_of_a_table_make_eight_bit_operands_of_a_word(self, per_step, largest):
    # As registers.dint4_times_2 does it: a table of the low 7 bits for each zero point, and nibbles that look it up.
    for zero_point in range(largest + 1):
      codes = np.random.default_rng(zero_point).integers(0, 16, (256, 128)).astype(np.int8)
      codes[(largest < codes) & (codes < dint.PLUS)] = largest
      first = (0x80808080 - zero_point * per_step * 0x01010101) % 2**32
      table = [first + per_step * (0x03020100 + quarter * 0x04040404) for quarter in range(4)]
      self.assertLess(max(table), 2**32)
      table = [word & 0x7F7F7F7F for word in table]
      table[3] = (table[3] & 0xFFFF) | 0x7F010000
      words = _words(layouts.prepack(jnp.asarray(codes), kernels.Layout.DINT4))
      low, high = (_bytes((_permuted(*table[:2], places) + _permuted(*table[2:], others)) << np.uint32(1))
                   for places, others in ((w, w ^ np.uint32(0x88888888)) for w in (words, words >> np.uint32(16))))
      got = np.stack([part.reshape(128, -1, 32) for part in (low, high)], axis=2).reshape(128, 256)
      want = np.select([codes == 14, codes == 15], [1, -1], per_step * (codes.astype(int) - zero_point))
      np.testing.assert_array_equal(got, 2 * want.T)

  def test_codes_above_eight_are_small_floats_of_eight_bits(self):
    # The bit pattern u of e4m3 is the number u / 512, for u below 8 as a subnormal one.
    values = np.arange(16, dtype=np.uint8).view(jnp.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(values, np.arange(16) / 512)

  def test_masks_make_pairs_of_sixteen_bit_operands_of_a_word(self):
    codes = _codes(256, 128)
    words = _words(layouts.prepack(jnp.asarray(codes), kernels.Layout.INT4_WIDE)) ^ np.uint32(0x88888888)
    got = np.empty((128, 256), np.float32)
    for pair in range(4):
      # The lowest 8 bits of a bfloat16 count steps of 2^-133, beyond the subnormal numbers, too.
      bits, factor = ((0x000F000F, 127), (0x00F000F0, 123))[pair % 2]
      halves = np.ascontiguousarray((words >> np.uint32(8 * (pair // 2))) & np.uint32(bits))
      values = 64 * (halves.view(jnp.bfloat16).astype(np.float64) * 2.0**factor - 8 / 64)
      for thread in range(4):
        for element in range(2):
          got[:, 8 * pair + 2 * thread + element :: 32] = values.reshape(128, -1, 4, 2)[:, :, thread, element]
    np.testing.assert_array_equal(got, codes.T)

  @parameterized.parameters(kernels.Layout.INT4, kernels.Layout.INT4_WIDE, kernels.Layout.DINT4)
  def test_refuses_known_codes_of_more_bits(self, layout):
    least, most = (0, 15) if layout is kernels.Layout.DINT4 else (-8, 7)
    make = lambda code: layouts.prepack(jnp.full((128, 128), code, jnp.int8), layout)
    np.testing.assert_array_equal(layouts.unpack(make(most), layout, (128, 128)) & 15, most)
    for code in (least - 1, most + 1):
      with self.assertRaisesRegex(ValueError, f'a code of 4 bits goes from {least} to {most}, and one is {code}'):
        make(code)
    # Those of a program are known when it runs.
    jax.jit(lambda codes: layouts.prepack(codes, layout))(jnp.full((128, 128), most + 1, jnp.int8))

  def test_plain_codes_are_integers_too(self):
    with self.assertRaisesRegex(ValueError, r'layouts are made of int8 codes .*, not float32 \[4, 4\]'):
      layouts.prepack(jnp.ones((4, 4)), kernels.Layout.CODES)

  def test_refuses_codes_that_are_not_int8(self):
    with self.assertRaisesRegex(ValueError, r'layouts are made of int8 codes .*, not int16 \[128, 128\]'):
      layouts.prepack(jnp.zeros((128, 128), jnp.int16), kernels.Layout.INT4)

  @parameterized.parameters('int4', None, 4)
  def test_refuses_what_is_no_layout(self, layout):
    with self.assertRaisesRegex(ValueError, f'must be a kernels.Layout, not {layout!r}'):
      kernels.prepack(jnp.zeros((128, 128), jnp.int8), layout)

  @parameterized.parameters(*kernels.Layout)
  def test_refuses_what_is_no_array(self, layout):
    with self.assertRaisesRegex(ValueError, 'w_codes must be an array, not a list'):
      kernels.prepack([[1]], layout)


class DintTest(parameterized.TestCase):

  @parameterized.product(special=dint.SPECIALS, groups=[1, 2])
  def test_integers_are_those_of_every_code_and_zero_point(self, special, groups):
    zero_point = np.tile(np.arange(14), (groups, 1))
    zero_point[-1] = zero_point[-1][::-1]
    codes = np.tile(np.arange(16)[:, None], (2, 14)).astype(np.int8)
    packed = layouts.prepack(jnp.asarray(codes), kernels.Layout.DINT4)
    got = integer_weights.integers(
        packed, kernels.Layout.DINT4, (32, 14), jnp.asarray(zero_point, jnp.int32), special)
    self.assertEqual(got.dtype, jnp.int8)
    for run in range(2):
      for code in range(14):
        np.testing.assert_array_equal(
            got[16 * run + code] * special, code - zero_point[0 if groups == 1 else run])
      np.testing.assert_array_equal(got[16 * run + 14 : 16 * run + 16], np.tile([[1], [-1]], (1, 14)))

  def test_special_codes_of_three_bits_become_those_of_four(self):
    np.testing.assert_array_equal(dint.widened(jnp.arange(8, dtype=jnp.uint8), 6), [0, 1, 2, 3, 4, 5, 14, 15])
    np.testing.assert_array_equal(dint.widened(jnp.arange(16, dtype=jnp.uint8), 14), np.arange(16))


class SumsTest(parameterized.TestCase):

  @parameterized.product(groups=[1, 4], layout=[kernels.Layout.CODES, kernels.Layout.INT4])
  def test_multipliers_go_into_the_integers_of_their_group(self, groups, layout):
    codes = np.tile(np.arange(-8, 8, dtype=np.int8)[:, None], (4, integer_weights.MOST))
    multiplier = np.stack([np.roll(np.arange(1, integer_weights.MOST + 1), group) for group in range(groups)])
    got = integer_weights.integers(
        layouts.prepack(jnp.asarray(codes), layout), layout, codes.shape, multiplier=jnp.asarray(multiplier, jnp.int32))
    self.assertEqual(got.dtype, jnp.int8)
    for row in range(64):
      np.testing.assert_array_equal(got[row], codes[row].astype(int) * multiplier[row * groups // 64])

  @parameterized.product(groups=[1, 4], offset=[False, True])
  def test_a_static_offset_folds_into_the_bias(self, groups, offset):
    rng = np.random.default_rng(0)
    codes, bias = _codes(64, 9), rng.normal(size=9).astype(np.float32)
    scale = rng.uniform(0.5, 1, (groups, 9)).astype(np.float32)
    w_offset = rng.normal(size=(groups, 9)).astype(np.float32) if offset else None
    values = codes * np.repeat(np.float64(scale), 64 // groups, axis=0)
    values += np.repeat(w_offset, 64 // groups, axis=0) if offset else 0
    sums = layouts.column_sums(jnp.asarray(codes), scale, w_offset)
    np.testing.assert_allclose(sums, values.sum(axis=0), rtol=1e-5, atol=1e-4)
    folded = layouts.fold_offset(bias, jnp.float32(-1.25), sums)
    np.testing.assert_allclose(folded, bias - 1.25 * values.sum(axis=0), rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(layouts.fold_offset(None, jnp.float32(-1.25), sums), -1.25 * sums)

  @parameterized.parameters(*_PACKED)
  def test_layouts_give_the_products_of_plain_codes(self, layout):
    rng = np.random.default_rng(0)
    x, w = rng.integers(-8, 8, (3, 150)).astype(np.int8), jnp.asarray(_codes(150, 9))
    scales = jnp.float32(0.5), jnp.asarray(rng.uniform(0.5, 1, (3, 9)), jnp.float32)
    call = jax.jit(kernels.quantized_matmul, static_argnames=('layout', 'implementation'))
    for implementation in kernels.IMPLEMENTATIONS:
      want = call(x, w, *scales, implementation=implementation)
      packed = layouts.prepack(w, layout)
      np.testing.assert_array_equal(call(x, packed, *scales, layout=layout, implementation=implementation), want)


if __name__ == '__main__':
  absltest.main()
