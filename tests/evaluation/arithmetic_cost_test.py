"""Cells of multiply-accumulate units: counts that can be done by hand, and the paper's argument for dINT."""

from absl.testing import absltest
from absl.testing import parameterized

from jaxquant.evaluation import arithmetic_cost
from jaxquant.numerics import formats


def _unit(name, **options):
  return arithmetic_cost.multiply_accumulate(formats.parse(name), **options)


def _ratio(**options):
  """Transistors of int8 weights over those of dint4 weights."""
  return _unit('int8', **options).transistors / _unit('dint4', **options).transistors


class ArithmeticCostTest(parameterized.TestCase):

  @parameterized.parameters(
      ('int2', 2, 0, (4, 2, 0)), ('uint4', 8, 0, (32, 24, 0)), ('int8', 8, 32, (64, 88, 0)),
      ('dint4', 8, 0, (34, 24, 21)), ('dint4/8', 8, 32, (34, 56, 23)), ('dint3', 4, 16, (13, 24, 12)))
  def test_counts_of_cells(self, name, activation_bits, accumulator_bits, want):
    self.assertEqual(_unit(name, activation_bits=activation_bits, accumulator_bits=accumulator_bits), want)

  def test_a_zero_point_takes_a_subtractor_and_a_wider_multiplier(self):
    self.assertEqual(_unit('uint4', accumulator_bits=0, zero_point=True), (40, 32 + 4, 0))
    self.assertEqual(_unit('dint4', accumulator_bits=0, zero_point=True), (42, 32 + 4, 22))
    self.assertBetween(_ratio(accumulator_bits=0, zero_point=True), 1.5, 1.7)

  def test_special_codes_take_back_a_quarter_of_what_half_a_multiplier_saves(self):
    wide, narrow, special = (_unit(name, accumulator_bits=0).transistors for name in ('int8', 'int4', 'dint4'))
    self.assertGreater(wide / narrow, 2)
    self.assertAlmostEqual((special - narrow) / (wide - narrow), 0.25, delta=0.01)

  def test_ratios_of_the_model_stay_below_that_of_the_synthesis(self):
    self.assertAlmostEqual(_ratio(accumulator_bits=0), 1.73, places=2)
    self.assertAlmostEqual(_ratio(accumulator_bits=32), 1.41, places=2)
    published = arithmetic_cost.SYNTHESIZED
    self.assertAlmostEqual(published['int8'].area / published['dint4'].area, 1.93, delta=0.01)
    self.assertAlmostEqual(published['int8'].power / published['dint4'].power, 2.56, places=2)

  @parameterized.parameters(False, True)
  def test_a_dint_unit_lies_between_those_of_its_bits_and_of_eight(self, zero_point):
    units = [_unit(name, zero_point=zero_point).transistors for name in ('uint3', 'dint3', 'dint4', 'uint8', 'dint8')]
    self.assertEqual(units, sorted(set(units)))


if __name__ == '__main__':
  absltest.main()
