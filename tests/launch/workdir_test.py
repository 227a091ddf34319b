"""What a launcher writes into a workdir is strict JSON, whatever was measured."""

import json
import math
import pathlib

from absl.testing import absltest

from jaxquant import errors
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

  def test_a_directory_of_others_is_refused_and_left_as_it_was(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    files = {'config.json': '{"model_type": "llama"}', 'tokenizer.json': '{}'}
    for name, text in files.items():
      (folder / name).write_text(text)
    for _ in range(2):  # nothing is left behind that would let the second through
      with self.assertRaisesRegex(errors.UserError, 'is no workdir'):
        workdirs.Workdir(str(folder), {'name': 'test'})
      self.assertEqual({path.name: path.read_text() for path in folder.iterdir()}, files)

  def test_a_mended_configuration_replaces_one_that_has_nothing_to_show(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    first = workdirs.Workdir(str(folder), {'name': 'test', 'rate': 1})
    del first  # and with it the lock
    workdirs.Workdir(str(folder), {'name': 'test', 'rate': 2})
    self.assertEqual(json.loads((folder / 'config.json').read_text())['rate'], 2)

  def test_another_configuration_is_named_by_its_first_difference(self):
    workdir = workdirs.Workdir(self.create_tempdir().full_path, {'rows': {'a': {'bits': 4}, 'b': {'bits': 3}}})
    workdir.write_results({})
    path = str(workdir.path)
    del workdir
    for rows, told in (({'a': {'bits': 4}}, 'rows.b is no longer there'), ({'a': {'bits': 2}}, 'rows.a.bits was 4 and'),
                       ({'a': {'bits': 4}, 'b': {'bits': 3}, 'c': {}}, 'rows.c was not there')):
      with self.assertRaisesRegex(errors.UserError, told):
        workdirs.Workdir(path, {'rows': rows})

  def test_a_file_where_a_folder_goes_is_named(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    (folder / 'checkpoints').touch()
    with self.assertRaisesRegex(errors.UserError, 'checkpoints is no directory'):
      workdirs.Workdir(str(folder), {'name': 'test'})

  def test_results_and_records_that_are_none(self):
    workdir = workdirs.Workdir(self.create_tempdir().full_path, {'name': 'test'})
    for text in ('{"evaluations": 3}', '{"evaluations": [3]}', '[3]'):
      (workdir.path / 'results.json').write_text(text)
      with self.assertRaisesRegex(errors.UserError, 'results.json'):
        workdir.read_results()
    kept, gone = {'variant': 'qat', 'seed': 0, 'step': 1}, {'variant': 'qat', 'seed': 0, 'step': 2}
    other = {'variant': 'both', 'seed': 0}
    lines = [b'[]', b'{"name": "\xff', b'3', *(json.dumps(record).encode() for record in (kept, other, gone))]
    (workdir.path / 'metrics.jsonl').write_bytes(b'\n'.join(lines))
    workdir.drop_records_after(1, 'qat', 0)
    left = (workdir.path / 'metrics.jsonl').read_text().splitlines()
    self.assertEqual(list(map(json.loads, left)), [kept, other])


if __name__ == '__main__':
  absltest.main()
