"""Tests of charts: well-formed and repeatable text, gaps, zeros, thinning, legends and densities."""

import re
import xml.etree.ElementTree as ElementTree

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from jaxquant.report import frame
from jaxquant.report import svg


def _elements(chart, tag, kind=''):
  return [e for e in ElementTree.fromstring(chart).iter(tag) if kind in e.get('class', '').split() + ['']]


def _points(path):
  """The vertices of a path of absolute M and L commands, float64 of shape [vertices, 2]."""
  return np.array(re.findall(r'[ML](-?[\d.]+) (-?[\d.]+)', path.get('d')), np.float64)


def _series(y, x=None, label='a', color=0, **more):
  y = np.asarray(y, np.float64)
  return svg.Series(label, color, np.arange(y.size, dtype=np.float64) if x is None else np.asarray(x, float), y, **more)


class LineChartTest(parameterized.TestCase):

  def test_higher_values_are_drawn_higher_and_later_ones_further_right(self):
    line, = _elements(svg.line_chart([_series([1.0, 2.0, 4.0])], 'loss'), 'path', 'line')
    points = _points(line)
    self.assertTrue((np.diff(points[:, 0]) > 0).all())
    self.assertTrue((np.diff(points[:, 1]) < 0).all())
    self.assertAlmostEqual((points[0, 1] - points[1, 1]) * 2, points[1, 1] - points[2, 1], delta=0.2)

  def test_zero_steps_have_a_place_of_their_own_on_a_log_axis(self):
    chart = svg.line_chart([_series([1.0, 2.0, 3.0, 4.0], x=[0, 1, 10, 100])], 'growth', x_scale='log')
    x = _points(_elements(chart, 'path', 'line')[0])[:, 0]
    self.assertEqual(x[0], 0.0)
    self.assertGreater(x[1], 10.0)
    self.assertAlmostEqual(x[2] - x[1], x[3] - x[2], delta=0.2)
    texts = [element.text for element in _elements(chart, 'text')]
    self.assertContainsSubset(['0', '1', '10', '100', 'step, log scale'], texts)

  def test_zeros_and_negative_values_on_a_logarithmic_y_axis(self):
    chart = svg.line_chart([_series([0.0, 1.0, 100.0, -1.0])], 'kurtosis', y_scale='log')
    y = _points(_elements(chart, 'path', 'line')[0])[:, 1]
    self.assertLen(y, 3)  # There is no place for -1.
    self.assertTrue((np.diff(y) < -5).all())

  @parameterized.parameters(np.nan, np.inf)
  def test_a_line_breaks_where_values_are_not_finite_and_says_so(self, value):
    chart = svg.line_chart([_series([1.0, 2.0, value, value, 2.0, 1.0])], 'loss')
    self.assertEqual(_elements(chart, 'path', 'line')[0].get('d').count('M'), 2)
    broken, = _elements(chart, 'path', 'broken')
    self.assertIn('step 2: ' + ('n/a' if np.isnan(value) else 'inf'), ElementTree.tostring(broken, 'unicode'))

  def test_a_lonely_point_is_marked(self):
    chart = svg.line_chart([_series([np.nan, 2.0, np.nan] + [1.0] * 100)], 'loss')
    self.assertLen(_elements(chart, 'circle'), 1)

  def test_long_series_are_thinned_but_keep_spikes(self):
    y = np.sin(np.arange(20000) / 500)
    y[12345] = 50.0
    points = _points(_elements(svg.line_chart([_series(y)], 'loss'), 'path', 'line')[0])
    self.assertLessEqual(len(points), 400)
    self.assertGreater(len(points), 200)
    self.assertEqual((points[:, 1] < points[:, 1].max() / 2).sum(), 1)

  def test_band_encloses_its_line(self):
    y = np.array([2.0, 3.0, 4.0])
    chart = svg.line_chart([_series(y, low=y - 1, high=y + 2)], 'kurtosis')
    band, line = (_points(_elements(chart, 'path', kind)[0]) for kind in ('band', 'line'))
    low, high = band[:3, 1], band[:2:-1, 1]
    self.assertTrue((low > line[:, 1]).all() and (high < line[:, 1]).all())

  def test_legend_lists_each_label_once_and_wraps(self):
    names = ['one', 'one', 'two'] + [f'a rather long variant name {index}' for index in range(6)]
    chart = svg.line_chart([_series([1.0, 2.0], label=name, color=len(name)) for name in names], 'loss', legend=True)
    entries = [element for element in _elements(chart, 'text') if element.text in names]
    self.assertEqual([element.text for element in entries], list(dict.fromkeys(names)))
    self.assertGreater(len({element.get('y') for element in entries}), 1)
    height = float(ElementTree.fromstring(chart).get('viewBox').split()[3])
    self.assertLess(max(float(element.get('y')) for element in entries), height)
    self.assertLess(max(float(element.get('x')) for element in entries), svg.SMALL[0])
    self.assertEmpty([e for e in _elements(svg.line_chart([_series([1.0, 2.0])], 'loss'), 'text') if e.text == 'a'])

  def test_labels_are_escaped_and_described(self):
    chart = svg.line_chart([_series([1.0, 44.714], label='<script>&"')], '<b>', x_label='<i>', legend=True)
    root = ElementTree.fromstring(chart)
    self.assertEqual(root.get('aria-label'), '<b>. <script>&" ends at 44.71.')
    self.assertNotIn('<script', chart)
    self.assertContainsSubset(['<script>&"', '<i>'], [element.text for element in root.iter('text')])

  def test_colors_repeat_dashed(self):
    chart = svg.line_chart([_series([1.0, 2.0], color=1), _series([1.0, 3.0], color=1 + frame.COLORS)], 'loss')
    self.assertEqual(
        [e.get('class') for e in _elements(chart, 'path', 'line')], ['line c1', 'line c1 dashed'])

  def test_marks_stand_at_their_points_without_a_line(self):
    chart = svg.line_chart(
        [_series([1.0, 100.0], x=[1, 100]), _series([10.0, np.nan, 1.0], x=[10, 10, 100], color=1, drawn='marks')],
        'speeds', x_scale='log', y_scale='log', legend=True)
    line, *_ = _elements(chart, 'path', 'line')
    (left, bottom), (right, top) = _points(line)
    *marks, in_legend = (re.findall(r'[\d.]+', e.get('transform')) for e in _elements(chart, 'path', 'mark'))
    np.testing.assert_allclose(
        np.float64(marks), [[(left + right) / 2, (bottom + top) / 2], [right, bottom]], atol=0.1)
    self.assertGreater(float(in_legend[1]), svg.SMALL[1])
    self.assertLen(_elements(chart, 'path', 'line'), 2)  # that of the first series, and its entry in the legend

  def test_marks_differ_in_each_round_through_the_palette(self):
    marks = [frame.mark(2 + frame.COLORS * index, 0, 0) for index in range(4)]
    self.assertLen(set(marks), 4)
    self.assertTrue(all(' c2"' in mark for mark in marks))

  def test_a_line_without_marks(self):
    line = _series([1.0, 2.0])
    self.assertLen(_elements(svg.line_chart([line], 'roof'), 'circle'), 2)
    self.assertEmpty(_elements(svg.line_chart([line._replace(drawn='line')], 'roof'), 'circle'))

  def test_the_title_of_the_y_axis_stands_beside_its_labels(self):
    line, = _elements(svg.line_chart([_series([1.0, 2.0])], 'loss'), 'path', 'frame')
    chart = svg.line_chart([_series([1.0, 2.0])], 'loss', y_label='<bits>', y_scale='log')
    title, = (element for element in _elements(chart, 'text') if element.text == '<bits>, log scale')
    self.assertIn('rotate(-90)', title.get('transform'))
    width = lambda path: float(path.get('d').rpartition('H')[2])
    self.assertLess(width(_elements(chart, 'path', 'frame')[0]), width(line))

  @parameterized.parameters(([],), ([_series([])],), ([_series([np.nan, np.nan])],), ([_series([5.0])],))
  def test_hardly_any_data_still_gives_a_chart(self, series):
    self.assertNotEmpty(_elements(svg.line_chart(series, 'loss', x_scale='log', y_scale='log'), 'text'))

  def test_equal_input_gives_equal_text(self):
    y = np.random.default_rng(0).normal(size=1000)
    self.assertEqual(svg.line_chart([_series(y)], 'loss'), svg.line_chart([_series(y.copy())], 'loss'))


class HistogramTest(absltest.TestCase):

  def _tops(self, chart):
    """For each histogram the upper edges of its bins in pixels."""
    return [np.array(re.findall(r'V([\d.]+)H', path.get('d')), np.float64) for path in _elements(chart, 'path', 'bars')]

  def test_densities_do_not_depend_on_the_width_of_bins_or_on_totals(self):
    fine = svg.Bars('before', 0, np.linspace(0, 8, 9), np.array([1, 1, 2, 2, 8, 8, 4, 4.0]))
    coarse = svg.Bars('after', 1, np.linspace(0, 8, 5), 100 * np.array([1, 2, 8, 4.0]))
    before, after = self._tops(svg.histogram([fine, coarse], 'weights'))
    np.testing.assert_allclose(before[::2], after)
    # On a log axis each doubling of the count is the same distance.
    self.assertAlmostEqual(after[0] - after[1], after[3] - after[2], delta=0.2)

  def test_empty_bins_leave_gaps_and_a_single_outlier_is_visible(self):
    counts = np.zeros(100)
    counts[45:55], counts[99] = 1e6, 1
    chart = svg.histogram([svg.Bars('before', 0, np.linspace(-50, 50, 101), counts)], 'activations')
    tops, = self._tops(chart)
    self.assertLen(tops, 11)
    bottom = float(re.search(r'M[\d.]+ ([\d.]+)V', _elements(chart, 'path', 'bars')[0].get('d')).group(1))
    self.assertGreater(bottom - tops[-1], 2.0)
    self.assertIn('values from -5.000 to 50.00', chart)

  def test_many_bins_are_merged(self):
    counts = np.arange(1000.0) + 1
    tops, = self._tops(svg.histogram([svg.Bars('before', 0, np.arange(1001.0), counts)], 'weights'))
    self.assertBetween(len(tops), 80, 160)
    self.assertTrue((np.diff(tops) <= 0).all())

  def test_an_empty_histogram_is_drawn_empty(self):
    chart = svg.histogram([svg.Bars('before', 0, np.array([0.0, 1.0]), np.zeros(1))], 'weights')
    self.assertIn('no values', chart)


if __name__ == '__main__':
  absltest.main()
