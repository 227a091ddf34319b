"""What a launcher writes into a workdir is strict JSON, whatever was measured."""

import json
import math
import pathlib

from absl.testing import absltest

from launch import workdir as workdirs


def _strict(text: str):
  """Parsed by the standard, which knows neither NaN nor Infinity."""

  def refuse(name):
    raise AssertionError(f'{name} in {text}')

  return json.loads(text, parse_constant=refuse)


class WorkdirTest(absltest.TestCase):

  def test_what_is_no_finite_number_is_written_as_null(self):
    workdir = workdirs.Workdir(self.create_tempdir().full_path, {'name': 'test'})
    measured = {'perplexity': math.nan, 'seconds': 1.5, 'list': [{'low': -math.inf, 'high': math.inf}, 'NaN', 3]}
    workdir.write_results(measured)
    workdir.write_decisions(measured)
    workdir.log(measured)
    for name in ('results.json', 'decisions.json', 'metrics.jsonl'):
      self.assertEqual(_strict((pathlib.Path(workdir.path) / name).read_text()), {
          'perplexity': None, 'seconds': 1.5, 'list': [{'low': None, 'high': None}, 'NaN', 3]}, name)


if __name__ == '__main__':
  absltest.main()
