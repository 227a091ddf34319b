"""Tests of precision tables: exact means, deviations and ratios, the order of columns, the text for the terminal."""

import math
import re
import statistics

from absl.testing import absltest
from absl.testing import parameterized

from jaxquant import errors
from jaxquant.report import parts
from jaxquant.report import tables


def _evaluation(perplexity, variant='baseline', weights=4, activations=4, mode='static', **more):
  return {'variant': variant, 'weights': weights, 'activations': activations, 'activation_mode': mode,
          'method': 'rtn', 'dataset': 'valid', 'seed': 0, 'perplexity': perplexity, **more}


def _three_seeds(full, low, variant):
  every = []
  for seed in range(3):
    every.append(_evaluation(full[seed], variant, 16, 16, 'none', method='none', seed=seed))
    every.append(_evaluation(low[seed], variant, seed=seed))
  return every


class PrecisionTableTest(parameterized.TestCase):

  @parameterized.parameters(
      (16, 16, 'none', 'W16A16'), (16, 16, 'static', 'W16A16'), (16, 4, 'static', 'W16A4 static'),
      (4, 16, 'none', 'W4A16'), (4, 4, 'dynamic', 'W4A4 dynamic'), (3, 8, 'none', 'W3A8'), (None, None, None, 'W16A16'),
      (4, 16, None, 'W4A16'))
  def test_precision_names_widths_and_mode(self, weights, activations, mode, expected):
    evaluation = {'weights': weights, 'activations': activations, 'activation_mode': mode}
    self.assertEqual(tables.precision(evaluation), expected)

  def test_values_of_attention_have_their_width_too(self):
    evaluations = [_evaluation(5.0, weights=4, activations=8, mode='dynamic', values=values) for values in (16, 4)]
    evaluations += [_evaluation(5.0, weights=4, activations=8, mode='dynamic', keys=8, values=values)
                    for values in (16, 4, 8)]
    table = tables.precision_table(evaluations)
    self.assertSequenceEqual(table.columns, [f'W4A8{name} dynamic' for name in ('', 'K8', 'K8V4', 'KV8', 'V4')])

  def test_the_column_that_counts_is_one_without_codes_of_operands_where_there_is_one(self):
    full = _evaluation(4.0, weights=16, activations=16, mode='none', method='none')
    cached = _evaluation(6.0, keys=8, values=8)
    self.assertEqual(tables.precision_table([full, cached, _evaluation(5.0)]).target, 'W4A4 static')
    self.assertEqual(tables.precision_table([full, cached]).target, 'W4A4KV8 static')

  def test_what_diverged_is_not_the_best(self):
    scores = {'a': math.nan, 'b': 20.0, 'c': 9.5}
    table = tables.precision_table([_evaluation(value, name) for name, value in scores.items()])
    self.assertEqual(re.findall(r'<b>(.*?)</b>', parts.precision_table(table)), ['9.500'])

  @parameterized.parameters((4, 4), (2, 3), (4.25, 8))
  def test_columns_are_in_the_order_of_weights_activations_and_mode(self, w, a):
    widths = [(w, a, 'dynamic'), (2, 16, 'none'), (w, a, 'static'), (16, 16, 'none'), (w, 16, 'none'),
              (16, a, 'static'), (16, a, 'dynamic')]
    table = tables.precision_table([_evaluation(5.0, weights=w, activations=a, mode=m) for w, a, m in widths])
    want = ['W16A16', f'W16A{a} static', f'W16A{a} dynamic', f'W{w}A16', f'W{w}A{a} static', f'W{w}A{a} dynamic']
    self.assertEqual(list(table.columns), want + ['W2A16'] * (w > 2))

  @parameterized.parameters(
      ([(2, 3, 'static'), (2, 3, 'dynamic')], 'W2A3 static'), ([(8, 8, 'static'), (4, 4, 'static')], 'W4A4 static'),
      ([(4, 4, 'dynamic'), (4, 16, 'none'), (16, 4, 'static')], None), ([], None))
  def test_ratio_is_that_of_static_codes_whatever_their_bits(self, widths, target):
    table = tables.precision_table([
        _evaluation(10.0, weights=16, activations=16, mode='none'),
        *(_evaluation(30.0, weights=w, activations=a, mode=m) for w, a, m in widths)])
    self.assertEqual(table.target, target)
    last = tables.row_cells(table, table.rows[0])[-1].mean
    self.assertEqual(last, 3.0 if target else table.rows[0].cells[table.columns[-1]].mean)
    self.assertEqual('/ own W16A16' in tables.format_text(table), target is not None)

  def test_mean_sample_deviation_and_paired_ratio_over_seeds(self):
    full, low = (20.0, 21.0, 25.0), (40.0, 63.0, 100.0)
    row, = tables.precision_table(_three_seeds(full, low, 'qat')).rows
    cell = row.cells['W4A4 static']
    self.assertAlmostEqual(cell.mean, statistics.mean(low))
    self.assertAlmostEqual(cell.deviation, statistics.stdev(low))
    self.assertEqual(cell.count, 3)
    ratio = row.ratios['W4A4 static']
    self.assertAlmostEqual(ratio.mean, 3.0)  # The mean of 2, 3 and 4, not 203 / 66.
    self.assertAlmostEqual(ratio.deviation, 1.0)

  def test_a_single_seed_has_no_deviation(self):
    row, = tables.precision_table([_evaluation(44.712)]).rows
    self.assertTrue(math.isnan(row.cells['W4A4 static'].deviation))
    self.assertEqual(tables.format_cell(row.cells['W4A4 static']), '44.71')
    self.assertEmpty(row.ratios)

  def test_ratio_uses_only_seeds_that_have_both(self):
    evaluations = _three_seeds((10.0, 10.0, 10.0), (20.0, 30.0, 40.0), 'qat')
    evaluations.append(_evaluation(1000.0, 'qat', seed=3))
    row, = tables.precision_table(evaluations).rows
    self.assertEqual(row.cells['W4A4 static'].count, 4)
    self.assertEqual(row.ratios['W4A4 static'], tables.Cell(3.0, 1.0, 3))

  def test_methods_get_rows_beside_their_variant_and_share_its_reference(self):
    evaluations = [
        _evaluation(10.0, 'a', 16, 16, 'none', method='none'), _evaluation(50.0, 'b'),
        _evaluation(40.0, 'a', method='rtn'), _evaluation(20.0, 'a', method='gptq')]
    rows = tables.precision_table(evaluations).rows
    self.assertEqual([row.label for row in rows], ['a', 'a + gptq', 'b'])
    self.assertEqual(rows[0].ratios['W4A4 static'].mean, 4.0)
    self.assertEqual(rows[1].ratios['W4A4 static'].mean, 2.0)
    self.assertNotIn('W16A16', rows[1].cells)

  def test_rows_of_a_sweep_are_called_by_their_names_and_share_the_reference_of_their_model(self):
    evaluations = [_evaluation(10.0, 'a', 16, 16, 'none', method='none')] + [
        {**_evaluation(value, 'a', method='gptq'), 'row': name} for value, name in ((20.0, 'first'), (30.0, 'second'))]
    rows = tables.precision_table(evaluations).rows
    self.assertEqual([row.label for row in rows], ['a', 'first', 'second'])
    self.assertEqual([row.ratios['W4A4 static'].mean for row in rows[1:]], [2.0, 3.0])

  def test_the_last_of_repeated_evaluations_counts(self):
    row, = tables.precision_table([_evaluation(9.0), _evaluation(7.0)]).rows
    self.assertEqual(row.cells['W4A4 static'], (7.0, row.cells['W4A4 static'].deviation, 1))

  def test_several_datasets_must_be_told_apart(self):
    evaluations = [_evaluation(9.0, dataset='wiki'), _evaluation(7.0, dataset='expo')]
    self.assertEqual(tables.datasets(evaluations), ['wiki', 'expo'])
    self.assertEqual(tables.precision_table(evaluations, 'expo').rows[0].cells['W4A4 static'].mean, 7.0)
    with self.assertRaisesRegex(errors.UserError, 'wiki, expo'):
      tables.precision_table(evaluations)

  def test_other_metric_and_no_evaluations(self):
    table = tables.precision_table([_evaluation(9.0, bits_per_byte=0.98764)], metric='bits_per_byte')
    self.assertIn('0.9876', tables.format_text(table))
    self.assertEmpty(tables.precision_table([_evaluation(9.0)], metric='bits_per_byte').rows)
    self.assertEmpty(tables.precision_table([]).rows)

  def test_values_that_are_not_finite_stay_visible(self):
    evaluations = _three_seeds((10.0, 10.0, 10.0), (20.0, math.inf, 40.0), 'infinite')
    evaluations += _three_seeds((10.0, 10.0, 10.0), (20.0, None, 40.0), 'missing')
    infinite, missing = tables.precision_table(evaluations).rows
    self.assertEqual(tables.format_cell(infinite.cells['W4A4 static'], 3), 'inf')
    self.assertEqual(tables.format_cell(missing.cells['W4A4 static'], 3), 'n/a')
    self.assertEqual(tables.format_cell(missing.cells['W16A16'], 3), '10.00 ± 0.00')


class FormatTest(parameterized.TestCase):

  @parameterized.parameters(
      (44.714, '44.71'), (3274.2, '3,274'), (1.23e6, '1.2e+06'), (5.6812, '5.681'), (327.44, '327.4'), (0.0, '0'),
      (999.96, '1,000'), (99999.7, '1.0e+05'), (12345.6, '12,346'), (0.98254, '0.9825'), (0.00012, '1.2e-04'),
      (-44.714, '-44.71'), (math.nan, 'n/a'), (math.inf, 'inf'), (-math.inf, '-inf'))
  def test_numbers_have_sensible_digits(self, value, expected):
    self.assertEqual(tables.format_number(value), expected)

  def test_deviation_has_the_decimals_of_its_mean(self):
    self.assertEqual(tables.format_cell(tables.Cell(44.714, 0.3219, 3), 3), '44.71 ± 0.32')
    self.assertEqual(tables.format_cell(tables.Cell(1.23e6, 41234.0, 3), 3), '1.2e+06 ± 4e+04')
    self.assertEqual(tables.format_cell(tables.Cell(44.714, 0.3219, 2), 3), '44.71 ± 0.32 n=2')
    self.assertEqual(tables.format_cell(None), '–')

  def test_text_is_exact(self):
    evaluations = [_evaluation(24.31, 'baseline', 16, 16, 'none'), _evaluation(3274.0, 'baseline'),
                   _evaluation(25.0, 'both', 16, 16, 'none'), _evaluation(27.5, 'both')]
    self.assertEqual(tables.format_text(tables.precision_table(evaluations)), '\n'.join([
        'Perplexity on valid, lower is better',
        '          W16A16  W4A4 static   W4A4 static',
        '                               / own W16A16',
        '--------  ------  -----------  ------------',
        'baseline   24.31        3,274         134.7',
        'both       25.00        27.50         1.100',
    ]))

  @parameterized.parameters(1, 3)
  def test_five_precisions_fit_a_terminal_of_100_columns(self, seeds):
    widths = [(16, 16, 'none'), (16, 4, 'static'), (4, 16, 'none'), (4, 4, 'static'), (4, 4, 'dynamic')]
    evaluations = [
        _evaluation(scale * (1 + 0.1 * seed), variant, w, a, m, seed=seed)
        for variant, scale in (('baseline', 1.2e6), ('kurtosis', 44.7), ('both', 3274.0)) for w, a, m in widths
        for seed in range(seeds)]
    lines = tables.format_text(tables.precision_table(evaluations)).split('\n')
    self.assertLessEqual(max(map(len, lines)), 100)
    self.assertIn(f'{1.2e6 * (1 + 0.1 * (seeds - 1) / 2):.1e}', '\n'.join(lines))

  def test_a_narrow_terminal_gets_deviations_on_their_own_lines(self):
    table = tables.precision_table(_three_seeds((20.0, 21.0, 25.0), (40.0, 63.0, 100.0), 'qat'))
    wide, narrow = tables.format_text(table), tables.format_text(table, width=45)
    self.assertIn('22.00 ± 2.65', wide)
    self.assertNotIn('22.00 ± 2.65', narrow)
    body = narrow.split('\n')[1:]
    self.assertLessEqual(max(map(len, body)), 45)
    self.assertIn('22.00', body[3])
    self.assertIn('± 2.65', body[4])


if __name__ == '__main__':
  absltest.main()
