"""Which codes a format has, how it is called, and what is refused."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp

from jaxquant import errors
from jaxquant.numerics import formats


class FormatsTest(parameterized.TestCase):

  @parameterized.product(bits=list(range(2, 9)), symmetric=[True, False])
  def test_codes_fit_their_bits_and_names_are_read_back(self, bits, symmetric):
    fmt = formats.IntFormat(bits, symmetric)
    self.assertEqual(formats.parse(fmt.name), fmt)
    self.assertEqual(fmt.maximum - fmt.minimum + 1, 2**bits - symmetric)
    self.assertEqual(fmt.minimum, -fmt.maximum if symmetric else 0)
    info = jnp.iinfo(fmt.dtype)
    self.assertTrue(info.min <= fmt.minimum and fmt.maximum <= info.max)

  @parameterized.parameters(*range(2, 9))
  def test_full_range_of_symmetric_codes(self, bits):
    fmt = formats.parse(f'full_int{bits}')
    self.assertEqual((fmt.bits, fmt.symmetric, fmt.full), (bits, True, True))
    self.assertEqual((fmt.minimum, fmt.maximum), (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1))
    self.assertEqual(formats.parse(fmt.name), fmt)
    with self.assertRaisesRegex(errors.UserError, 'full range anyway'):
      formats.IntFormat(bits, symmetric=False, full=True)

  @parameterized.parameters(*range(2, 9))
  def test_asymmetric_codes_without_zero_in_range(self, bits):
    fmt = formats.parse(f'offset_uint{bits}')
    self.assertEqual((fmt.bits, fmt.symmetric, fmt.with_zero, fmt.name), (bits, False, False, f'offset_uint{bits}'))
    self.assertEqual((fmt.minimum, fmt.maximum), (0, 2**bits - 1))
    with self.assertRaisesRegex(errors.UserError, 'zero in the middle of their ranges anyway'):
      formats.IntFormat(bits, with_zero=False)

  def test_packed_codes_take_the_next_width_that_divides_a_byte(self):
    self.assertEqual([formats.IntFormat(bits).storage_bits for bits in range(2, 9)], [2, 4, 4, 8, 8, 8, 8])

  @parameterized.parameters('int1', 'int9', 'uint16', 'float8', 'int4 ', 'Int4', 'offset_int4', '')
  def test_refuses_names_that_are_no_format(self, name):
    with self.assertRaisesRegex(errors.UserError, f'unknown number format {name!r}'):
      formats.parse(name)

  @parameterized.parameters(1, 9)
  def test_refuses_widths_that_no_code_has(self, bits):
    with self.assertRaisesRegex(errors.UserError, f'2 to 8 bits, not {bits}'):
      formats.IntFormat(bits)


if __name__ == '__main__':
  absltest.main()
