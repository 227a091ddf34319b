"""Codes in 32-bit words: bit for bit where they belong, for every number of bits, and back."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from jaxquant.interop import words


class WordsTest(parameterized.TestCase):

  @parameterized.product(bits=list(range(2, 9)), count=[1, 7, 32, 45])
  def test_code_i_is_at_bit_i_times_bits(self, bits, count):
    codes = np.random.default_rng(bits).integers(0, 2**bits, (3, count)).astype(np.uint8)
    packed = words.pack(codes, bits)
    self.assertEqual((packed.dtype, packed.shape), (np.int32, (3, words.count(count, bits))))
    for row, got in zip(codes, packed):
      number = sum(int(code) << (i * bits) for i, code in enumerate(row))  # of any length
      self.assertEqual([word & 0xFFFFFFFF for word in got.tolist()],
                       [(number >> (32 * w)) & 0xFFFFFFFF for w in range(len(got))])
    np.testing.assert_array_equal(words.unpack(packed, bits, count), codes)

  def test_transposed_words_are_unpacked_too(self):
    codes = np.arange(16, dtype=np.uint8).reshape(2, 8)
    np.testing.assert_array_equal(words.unpack(words.pack(codes, 4).T.copy().T, 4, 8), codes)


if __name__ == '__main__':
  absltest.main()
