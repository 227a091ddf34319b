"""Tests of reading a run's files, and of grouping its records into curves and bands."""

import json
import math
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from jaxquant import errors
from jaxquant.report import records


class ReadTest(absltest.TestCase):

  def _read(self, metrics):
    folder = pathlib.Path(self.create_tempdir().full_path)
    (folder / 'metrics.jsonl').write_text(metrics)
    return records.read(folder)

  def test_a_step_written_again_after_a_resume_replaces_the_first(self):
    lines = [{'kind': 'train', 'step': step, 'loss': loss} for step, loss in ((1, 9.0), (2, 8.0), (2, 7.0), (3, 6.0))]
    curve = records.curves(self._read('\n'.join(map(json.dumps, lines))).metrics, 'train', 'loss')['run', 0]
    np.testing.assert_array_equal(curve.steps, [1, 2, 3])
    np.testing.assert_array_equal(curve.values, [9, 7, 6])

  def test_records_of_different_paths_variants_and_seeds_are_kept_apart(self):
    lines = [
        {'kind': 'site', 'step': 1, 'site': site, 'variant': variant, 'seed': seed, 'kurtosis': 3.0}
        for site in ('a', 'b') for variant in ('x', 'y') for seed in (0, 1)]
    self.assertLen(self._read('\n'.join(map(json.dumps, lines))).metrics, 8)

  def test_an_unfinished_last_line_is_noted_and_left_out(self):
    run = self._read('{"kind": "train", "step": 1, "loss": NaN}\n{"kind": "tra')
    self.assertLen(run.metrics, 1)
    self.assertTrue(math.isnan(run.metrics[0]['loss']))
    self.assertRegex(run.notes[0], r'last line of metrics.jsonl \(2\)')

  def test_a_broken_line_within_the_file_is_an_error_that_names_it(self):
    with self.assertRaisesRegex(errors.UserError, r'metrics\.jsonl, line 2: not valid JSON'):
      self._read('{"kind": "train", "step": 1}\nnonsense\n{"kind": "train", "step": 2}\n')

  def test_records_without_kind_or_step_are_counted(self):
    run = self._read('{"kind": "train"}\n[]\n{"step": 1}\n\n{"kind": "train", "step": 1}\n')
    self.assertLen(run.metrics, 1)
    self.assertStartsWith(run.notes[0], '3 lines')

  def test_broken_objects_and_empty_directories_are_errors(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    with self.assertRaisesRegex(errors.UserError, 'metrics.jsonl, results.json or config.json'):
      records.read(folder)
    (folder / 'results.json').write_text('[1]')
    with self.assertRaisesRegex(errors.UserError, 'results.json: holds a list'):
      records.read(folder)
    (folder / 'results.json').write_text('{"seconds": ')
    with self.assertRaisesRegex(errors.UserError, 'results.json: not valid JSON'):
      records.read(folder)


class GroupTest(parameterized.TestCase):

  @parameterized.parameters(
      ('layers/3/attention/input', 'layers/*/attention/input'), ('layers/31/mlp/fc2', 'layers/*/mlp/fc2'),
      ('encoder.11.output', 'encoder.*.output'), ('head/int4', 'head/int4'), ('0', '*'))
  def test_site_kind_replaces_layer_numbers_only(self, path, expected):
    self.assertEqual(records.site_kind(path), expected)

  def test_bands_span_layers_and_seeds_of_a_variant(self):
    lines = [
        {'kind': 'site', 'step': step, 'site': f'layers/{layer}/mlp', 'variant': variant, 'seed': seed,
         'kurtosis': value * (step + 1)}
        for step in (1, 0) for variant, scale in (('x', 1), ('y', 10))
        for layer, seed, value in ((0, 0, 1 * scale), (1, 0, 2 * scale), (0, 1, 3 * scale), (1, 1, 6 * scale))]
    band = records.bands(lines, 'site', 'kurtosis')['layers/*/mlp']['y']
    np.testing.assert_array_equal(band.steps, [0, 1])
    np.testing.assert_array_equal(band.mean, [30, 60])
    np.testing.assert_array_equal(band.low, [10, 20])
    np.testing.assert_array_equal(band.high, [60, 120])

  def test_a_diverged_member_is_not_averaged_away(self):
    lines = [
        {'kind': 'site', 'step': 0, 'site': f'{layer}', 'kurtosis': value} for layer, value in ((0, 1.0), (1, None))]
    self.assertTrue(np.isnan(records.bands(lines, 'site', 'kurtosis')['*']['run'].mean).all())

  def test_a_page_shows_a_limited_number_of_kinds_and_says_so(self):
    notes = []
    self.assertEqual(records.limited(['a', 'b'], 'histograms', notes), ['a', 'b'])
    self.assertEmpty(notes)
    self.assertLen(records.limited(map(str, range(30)), 'histograms', notes), 12)
    self.assertRegex(notes[0], r'Of 30 kinds \(histograms\) the page shows 12, without')

  def test_numbers(self):
    self.assertEqual([records.number(value) for value in (1, 2.5, '3', 'inf')], [1.0, 2.5, 3.0, math.inf])
    self.assertTrue(all(math.isnan(records.number(value)) for value in (None, 'nan', 'text', [1], {}, 10**400)))


if __name__ == '__main__':
  absltest.main()
