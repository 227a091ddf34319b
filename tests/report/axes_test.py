"""Tests of axes: where values go, which ticks are drawn, and how they are labelled."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from jaxquant.report import axes


class AxesTest(parameterized.TestCase):

  def test_linear_axis_maps_its_domain_onto_its_pixels(self):
    axis = axes.fit(np.array([2.0, 4.0, np.nan, np.inf]), 'linear', 100.0, 0.0, padded=False)
    np.testing.assert_allclose(axis.place([2.0, 3.0, 4.0]), [100.0, 50.0, 0.0])
    self.assertTrue(np.isnan(axis.place([np.nan, np.inf, -np.inf])).all())

  def test_log_axis_places_equal_factors_at_equal_distances(self):
    axis = axes.fit(np.array([1.0, 1e4]), 'log', 0.0, 400.0, padded=False)
    np.testing.assert_allclose(axis.place([1.0, 10.0, 1e4]), [0.0, 100.0, 400.0], atol=1e-9)

  def test_log_axis_keeps_zeros_apart_and_drops_negative_values(self):
    axis = axes.fit(np.array([0.0, 1.0, 100.0]), 'log', 0.0, 400.0, padded=False)
    zero, one, hundred, negative = axis.place([0.0, 1.0, 100.0, -1.0])
    self.assertEqual(zero, 0.0)
    self.assertGreater(one, 15.0)
    self.assertAlmostEqual(hundred, 400.0)
    self.assertTrue(math.isnan(negative))
    self.assertEqual(axis.ticks(4), [0.0, 1.0, 10.0, 100.0])

  @parameterized.parameters(([],), ([0.0, 0.0],), ([np.nan],), ([-3.0, 0.0],))
  def test_log_axis_without_positive_values_becomes_linear(self, values):
    axis = axes.fit(np.array(values), 'log', 0.0, 100.0)
    self.assertEqual(axis.scale, 'linear')
    self.assertGreater(axis.high, axis.low)

  @parameterized.product(value=(0.0, 1.0, -2.5, 1e9), scale=('linear', 'log'))
  def test_a_single_value_lies_within_its_axis(self, value, scale):
    axis = axes.fit(np.array([value, value]), scale, 0.0, 100.0)
    self.assertBetween(float(axis.place(value)), 0.0, 100.0)
    self.assertNotEmpty(axis.ticks(5))

  @parameterized.parameters('linear', 'log')
  def test_fixed_ends_are_exact(self, scale):
    axis = axes.fit(np.array([3.0, 7.0]), scale, 0.0, 100.0, limits=(1.0, 20.0))
    np.testing.assert_allclose(axis.place([1.0, 20.0]), [0.0, 100.0], atol=1e-9)

  @parameterized.parameters(
      ((0.0, 12000.0), 'linear'), ((3.41, 4.12), 'linear'), ((-5.2, 6.1), 'linear'), ((1e-5, 9e-5), 'linear'),
      ((1.0, 12000.0), 'log'), ((1.5, 190.0), 'log'), ((1e-6, 1e9), 'log'), ((20.0, 23.0), 'log'), ((0.3, 31.0), 'log'))
  def test_ticks_are_few_ascending_inside_and_told_apart(self, domain, scale):
    axis = axes.fit(np.array(domain), scale, 0.0, 300.0, padded=False)
    ticks = axis.ticks(5)
    self.assertBetween(len(ticks), 2, 8)
    self.assertEqual(ticks, sorted(ticks))
    self.assertGreaterEqual(ticks[0], domain[0] * (1 - 1e-9) if domain[0] > 0 else domain[0])
    self.assertLessEqual(ticks[-1], domain[1] * (1 + 1e-9))
    self.assertLen(set(axes.labels(ticks, scale)), len(ticks))

  def test_labels(self):
    self.assertEqual(axes.labels([0.0, 1.0, 500.0, 1500.0, 2e4, 3e6, 2e-4], 'log'),
                     ['0', '1', '500', '1.5k', '20k', '3M', '2e-4'])
    self.assertEqual(axes.labels([3.8, 3.9, 4.0], 'linear'), ['3.8', '3.9', '4.0'])
    self.assertEqual(axes.labels([-0.5, 0.0, 0.5], 'linear'), ['-0.5', '0', '0.5'])

  @parameterized.parameters(
      ([1.0, 30.0], 'log'), ([0.0, 1.0, 30.0], 'log'), ([1.0, 10.0], 'linear'), ([-1.0, 1.0, 30.0], 'linear'),
      ([], 'linear'), ([np.nan, 0.0], 'linear'))
  def test_spread_chooses_a_scale(self, values, expected):
    self.assertEqual(axes.spread(np.array(values)), expected)


if __name__ == '__main__':
  absltest.main()
