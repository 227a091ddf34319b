"""Rooflines of kernels: points stand where their speed and their bytes put them, and other files are refused."""

import json
import pathlib
import re
import xml.etree.ElementTree as ElementTree

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from jaxquant import errors
from launch.benchmarks import kernel_columns
from launch.benchmarks import kernel_roofline
from tests import launching

_BANDWIDTH, _PEAK = 4e12, 2e15
_FEW, _MANY = (kernel_columns.Problem(tokens, 4096, 4096) for tokens in (16, 8192))


def _operations(problem):
  return 2 * problem.tokens * problem.outputs * problem.inputs


def _result(*rows):
  """A result of the benchmark: (problem, {column: seconds, or None for one that failed}) pairs."""
  def column(problem, name, seconds):
    if seconds is None:
      return {'error': 'out of registers'}
    return {'seconds': seconds, 'floor_seconds': kernel_columns.COLUMNS[name].bytes(problem) / _BANDWIDTH}

  return {'environment': {'device': 'NVIDIA H200', 'jax': '0.11.2'}, 'copy_bytes_per_second': _BANDWIDTH,
          'int8_peak': _PEAK,
          'rows': [{**problem._asdict(), 'columns': {name: column(problem, name, s) for name, s in times.items()}}
                   for problem, times in rows]}


def _floor(problem, name):
  """The seconds in which the bytes of a column can be copied."""
  return kernel_columns.COLUMNS[name].bytes(problem) / _BANDWIDTH


def _paths(text, kind):
  root = ElementTree.fromstring(text)
  return [path for path in root.iter('{http://www.w3.org/2000/svg}path') if kind in path.get('class', '').split()]


def _marks(text):
  """Places [marks, 2] in pixels, without those of the legend, and the name of each one's column."""
  marks = [mark for mark in _paths(text, 'mark') if len(mark)]
  numbers = np.float64([re.findall(r'[\d.]+', mark.get('transform')) for mark in marks])
  return numbers, [mark[0].text.partition(',')[0] for mark in marks]


def _roofs(text):
  """Corners [corners, 2] of the roofs in pixels, without their entries in the legend."""
  paths = [path.get('d') for path in _paths(text, 'line') if 'L' in path.get('d')]
  return [np.float64(re.findall(r'[ML](-?[\d.]+) (-?[\d.]+)', path)) for path in paths]


class GeometryTest(parameterized.TestCase):

  def test_kernels_at_a_floor_lie_on_the_roof_and_slower_ones_below(self):
    few, peak = _floor(_FEW, 'w4a8'), _operations(_MANY) / _PEAK
    text = kernel_roofline.draw(_result(
        (_FEW, {'w4a8': few, 'w8a8': 2 * _floor(_FEW, 'w8a8'), 'bf16': _floor(_FEW, 'bf16')}),
        (_MANY, {'w4a8': peak, 'w8a8': 3 * peak, 'bf16': 2 * peak})))
    factors = {'w4a8': (1, 1), 'w8a8': (2, 3), 'bf16': (1, 2)}
    places, names = _marks(text)
    self.assertEqual(names, [name for name in factors for _ in (_FEW, _MANY)])
    roof, half = _roofs(text)
    below = places[:, 1] - np.interp(places[:, 0], *roof.T)  # pixels; y grows downwards
    octave = half[-1, 1] - roof[-1, 1]
    np.testing.assert_allclose(below, np.log2([*factors.values()]).ravel() * octave, atol=0.3)

  def test_points_are_operations_by_bytes_and_by_seconds(self):
    result = _result((_FEW, {'w4a8': 1e-5}), (_MANY, {'w4a8': None}))
    moved = 4096 * 4096 / 2 + 4 * 4096 + 16 * 4096 + 2 * 16 * 4096
    np.testing.assert_allclose(
        kernel_roofline.points(result, 'w4a8'), [[_operations(_FEW) / moved, _operations(_FEW) / 1e-5]])

  def test_the_roof_bends_where_the_peak_takes_as_long_as_the_bytes(self):
    roofs = kernel_roofline.Roofs(_BANDWIDTH, _PEAK)
    np.testing.assert_allclose(
        roofs.whole((10.0, 5000.0)), [[10, 10 * _BANDWIDTH], [500, _PEAK], [5000, _PEAK]])
    np.testing.assert_allclose(roofs.whole((10.0, 100.0)), [[10, 10 * _BANDWIDTH], [100, 100 * _BANDWIDTH]])
    np.testing.assert_allclose(roofs.of_bf16((10.0, 5000.0)), [[250, _PEAK / 2], [5000, _PEAK / 2]])

  def test_bf16_has_a_roof_where_something_multiplies_it(self):
    result = _result((_MANY, {'w4a8': 1e-3, 'bf16': 2e-3}))
    self.assertLen(_roofs(kernel_roofline.draw(result)), 2)
    self.assertLen(_roofs(kernel_roofline.draw(result, ['w4a8'])), 1)
    few = _result((_FEW, {'bf16': 3e-5}))  # so few operations a byte that the peak is out of sight
    self.assertLen(_roofs(kernel_roofline.draw(few)), 1)

  def test_every_column_has_a_mark_of_its_own(self):
    text = kernel_roofline.draw(_result((_MANY, dict.fromkeys(kernel_columns.COLUMNS, 1e-3))))
    kinds = {(mark.get('class'), mark.get('d')) for mark in _paths(text, 'mark')}
    self.assertLen(kinds, len(kernel_columns.COLUMNS))
    self.assertFalse(any('c6' in kind.split() for kind, _ in kinds))  # the colour of the roofs

  def test_what_was_not_measured_is_left_out(self):
    text = kernel_roofline.draw(_result((_FEW, {'w4a8': None})))
    self.assertEmpty(_paths(text, 'mark'))
    self.assertLen(_roofs(text), 1)


class BadInputTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.file = self.folder / 'rows.json'

  @parameterized.parameters(
      ([], 'holds no JSON object'), ({}, 'holds no rows of the benchmark of kernels'),
      ({'environment': {}, 'sweep': []}, 'holds no rows'),
      ({**_result((_FEW, {'w4a8': 1e-5})), 'rows': [{'variant': 'qat', 'milliseconds': 3}]}, 'holds no rows'),
      (_result((_FEW, {'w4a8': 0})), 'holds no rows'))
  def test_files_of_something_else(self, content, message):
    self.file.write_text(json.dumps(content))
    with self.assertRaisesRegex(errors.UserError, f'^{re.escape(str(self.file))} {message}'):
      kernel_roofline.read(self.file)

  @parameterized.parameters(
      (('--rows={folder}/nowhere.json', '--plot={folder}/a.svg'), 'nowhere.json cannot be read'),
      (('--rows={folder}/rows.json',), '--rows=FILE is what to plot; --plot=FILE.svg says where'),
      (('--rows={folder}/rows.json', '--plot={folder}/none/a.svg'), 'none/a.svg: there is no such folder'),
      (('--rows={folder}/rows.json', '--plot={folder}/a.svg', '--columns=w5a8'), 'no column w5a8; there are bf16'),
      (('--sweep=w4a8', '--plot={folder}/a.svg'), 'of measurements, not of a --sweep'))
  def test_flags(self, given, message):
    self.file.write_text(json.dumps(_result((_FEW, {'bf16': 3e-5, 'w4a8': 1e-5}))))
    finished = launching.run('benchmark', 'kernels', *(flag.format(folder=self.folder) for flag in given))
    self.assertEqual(finished.code, 2, finished)
    self.assertIn(message, finished.error)
    self.assertLen(finished.error.splitlines(), 1)

  def test_a_saved_run_is_plotted_without_a_gpu(self):
    result = _result((_FEW, {'bf16': 3e-5, 'w4a8': 1e-5}))
    self.file.write_text(json.dumps(result))
    plot = self.folder / 'roofline.svg'
    finished = launching.run('benchmark', 'kernels', f'--rows={self.file}', f'--plot={plot}', '--columns=w4a8')
    self.assertEqual(finished.code, 0, finished)
    self.assertEqual(plot.read_text(encoding='utf-8'), kernel_roofline.draw(result, ['w4a8']))


if __name__ == '__main__':
  absltest.main()
