"""Packed codes come back, in the byte order of the checkpoint format."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from jaxquant.numerics import formats
from jaxquant.numerics import packing


class PackingTest(parameterized.TestCase):

  @parameterized.product(bits=list(range(2, 9)), symmetric=[True, False], axis=[-1, -2], size=[5, 8])
  def test_every_code_comes_back(self, bits, symmetric, axis, size):
    fmt = formats.IntFormat(bits, symmetric)
    # Every code of the format stands at every place of a byte.
    codes = (np.arange(size)[:, None] + np.arange(256)) % (fmt.maximum - fmt.minimum + 1) + fmt.minimum
    codes = np.moveaxis(np.stack([codes, codes[::-1]]).astype(fmt.dtype), 1, axis)
    packed = packing.pack(jnp.asarray(codes), fmt, axis)
    unpacked = packing.unpack(packed, fmt, axis, size)
    self.assertEqual((packed.dtype, unpacked.dtype), (jnp.uint8, fmt.dtype))
    self.assertEqual(packed.shape[axis], -(-size * fmt.storage_bits // 8))
    np.testing.assert_array_equal(unpacked, codes)

  def test_first_of_two_nibbles_is_the_low_one(self):
    packed = packing.pack(jnp.array([1, -2, 7, -7, 3], jnp.int8), formats.IntFormat(4), -1)
    self.assertEqual([f'{byte:02x}' for byte in packed.tolist()], ['e1', '97', '03'])

  def test_four_codes_of_two_bits_fill_a_byte_from_the_low_end(self):
    packed = packing.pack(jnp.array([3, 2, 1, 0, 2], jnp.uint8), formats.IntFormat(2, symmetric=False), -1)
    self.assertEqual([f'{byte:08b}' for byte in packed.tolist()], ['00011011', '00000010'])

  def test_only_the_packed_axis_shrinks(self):
    codes = jnp.arange(30, dtype=jnp.int8).reshape(5, 6) % 7
    np.testing.assert_array_equal(
        packing.pack(codes, formats.IntFormat(4), -2).T, packing.pack(codes.T, formats.IntFormat(4), -1))


if __name__ == '__main__':
  absltest.main()
