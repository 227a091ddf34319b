"""launch.sweep: a figure for each row, the same as launch.quantize's, continued behind the last one."""

import importlib
import json
import pathlib
import shutil

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from jaxquant.models import staging
from launch import quantize_config
from tests import launching
from tests import model_directories
from tests import networks
from tests import source

_ROWS = '''
from configs.ptq import gptq_w4a4
from configs.ptq import rtn_w4a4


def get_rows(windows='8'):
  rows = {'rounded': rtn_w4a4.get_config(), 'fed back': gptq_w4a4.get_config(), 'eight': rtn_w4a4.get_config()}
  for config in rows.values():
    config.calibration_windows = int(windows)
  rows['eight'].update(weights=8, activations=16)
  return rows
'''
_OTHERS = '''
import sys
from configs.ptq import rtn_w4a4


def get_rows(what):
  config = rtn_w4a4.get_config()
  if what != 'exit':
    return {'number': {1: config}, 'nameless': {'': config}, 'dict': {'row': config.to_dict()}}[what]
  sys.exit('enough')
'''
# A file of rows, and what its get_rows is called with: each kind of model that it is made for.
_FILES = [(path.stem, argument) for path in sorted((source.ROOT / 'configs' / 'sweeps').glob('*.py')) for argument in {
    'aqas': ['16', '4'], 'outlier_suppression': ['opt', 'llama', 'bert'], 'slac': ['8,16'], 'w4a4': ['opt', 'llama'],
}.get(path.stem, [None])]


class SweepTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.rows = launching.folder() / 'rows.py'
    cls.rows.write_text(_ROWS)
    cls.flags = [f'--model={launching.trained()}', f'--rows={cls.rows}',
                 f'--text={launching.folder() / "validation.txt"}']
    cls.straight = launching.folder() / 'swept'
    cls.finished = launching.run('sweep', *cls.flags, f'--workdir={cls.straight}')

  def setUp(self):
    super().setUp()
    self.assertEqual(self.finished.code, 0, self.finished.error)
    self.workdir = launching.folder() / self.id()

  def perplexities(self, workdir: pathlib.Path) -> dict[str | None, float]:
    """Perplexity by row."""
    return {entry.get('row'): entry['perplexity'] for entry in launching.evaluations(workdir)}

  def test_a_row_is_what_quantize_scores(self):
    self.assertEqual(list(self.perplexities(self.straight)), [None, 'rounded', 'fed back', 'eight'])
    finished = launching.run('quantize', '--config=configs/ptq/gptq_w4a4.py', '--config.calibration_windows=8',
                             self.flags[0], self.flags[2], f'--workdir={self.workdir}')
    self.assertEqual(finished.code, 0, finished.error)
    self.assertEqual(self.perplexities(self.straight)['fed back'], self.perplexities(self.workdir)[None])
    kept = json.loads((self.straight / 'results.json').read_text())['decisions']
    self.assertEqual(list(kept), ['rounded', 'fed back', 'eight'])
    self.assertEqual(kept['fed back'], json.loads((self.workdir / 'decisions.json').read_text()))

  def test_the_table_and_the_page_have_a_row_for_each(self):
    page = (self.straight / 'report.html').read_text()
    for name in ('rounded', 'fed back', 'eight'):
      self.assertRegex(self.finished.output, rf'\n{name} +[\d.,–]')
      self.assertIn(name, page)
    self.assertIn('<dt>model.width</dt>', page)
    self.assertNotIn('<dt>rows.', page)  # options of methods, used or not
    self.assertFalse((self.straight / 'blocks').exists())

  def test_continues_behind_the_last_row(self):
    results = json.loads((self.straight / 'results.json').read_text())
    launching.run('sweep', *self.flags, f'--workdir={self.workdir}', '--rows=nothing.py')  # leaves nothing behind
    self.assertFalse(self.workdir.exists())
    self.workdir.mkdir()
    (self.workdir / 'config.json').write_text((self.straight / 'config.json').read_text())
    (self.workdir / 'results.json').write_text(json.dumps({**results, 'evaluations': results['evaluations'][:3]}))
    finished = launching.run('sweep', *self.flags, f'--workdir={self.workdir}')
    self.assertEqual(finished.code, 0, finished.error)
    self.assertEqual([line for line in finished.output.splitlines() if line.startswith('row ')], ['row 4/4: eight'])
    self.assertEqual(self.perplexities(self.workdir), self.perplexities(self.straight))
    self.assertLen(json.loads((self.workdir / 'results.json').read_text())['decisions'], 3)

  @parameterized.parameters(('text', 'a text'), ('calibration', 'what rows are calibrated on'))
  def test_files_whose_contents_changed_are_refused(self, flag, what):
    file = self.workdir.with_name(f'{self.id()}.txt')
    file.write_text((launching.folder() / 'validation.txt').read_text())
    flags = [*self.flags[:2], f'--{flag}={file}', '--only=rounded', f'--workdir={self.workdir}']
    flags += [self.flags[2]] * (flag == 'calibration')
    self.assertEqual(launching.run('sweep', *flags).code, 0)
    results = json.loads((self.workdir / 'results.json').read_text())
    results['evaluations'] = [entry for entry in results['evaluations'] if 'row' not in entry]
    (self.workdir / 'results.json').write_text(json.dumps(results))
    content = file.read_text()
    file.write_text('Another text.' + content)
    finished = launching.run('sweep', *flags)
    self.assertEqual(finished.code, 2)
    self.assertIn(f'{what} has changed; take another workdir', finished.error)
    self.assertEqual(json.loads((self.workdir / 'results.json').read_text()), results)
    file.write_text(content)
    self.assertEqual(launching.run('sweep', *flags).code, 0)

  def test_what_is_not_alike_is_not_joined(self):
    rows = launching.folder() / 'alike.py'
    rows.write_text(_ROWS.replace('weights=8', 'weights=7'))
    for name, flags in (('short', ['--length=8', '--only=eight']), ('other', [f'--rows={rows}', '--only=eight'])):
      finished = launching.run('sweep', *self.flags, f'--workdir={self.workdir}-{name}', *flags)
      self.assertEqual(finished.code, 0, finished.error)
    first = f'--join={self.straight}'
    for flags, message in (
        ([first, f'--join={self.workdir}-short'], 'short was measured with lengths [8], '),
        ([first, f'--join={self.workdir}-other'], "has another configuration than those before it for row 'eight'"),
        ([first, self.flags[0]], '--model means nothing beside --join')):
      finished = launching.run('sweep', *flags, f'--workdir={self.workdir}')
      self.assertEqual(finished.code, 2)
      self.assertIn(message, finished.error)
    results = json.loads((self.straight / 'results.json').read_text())
    shutil.copytree(self.straight, partial := f'{self.workdir}-partial')
    (pathlib.Path(partial) / 'results.json').write_text(
        json.dumps({**results, 'evaluations': results['evaluations'][:2]}))
    finished = launching.run('sweep', f'--join={partial}', f'--workdir={self.workdir}')
    self.assertEqual(finished.code, 0, finished.error)
    self.assertIn("has no scores of row 'fed back', nor of 1 others", finished.error)

  def test_parts_joined_are_the_whole(self):
    parts = [f'{self.workdir}-{part}' for part in (1, 2)]
    for number, part in enumerate(parts, 1):
      finished = launching.run('sweep', *self.flags, f'--part={number}/2', f'--workdir={part}')
      self.assertEqual(finished.code, 0, finished.error)
    joined = [f'--join={part}' for part in parts]
    finished = launching.run('sweep', *joined, f'--workdir={self.workdir}')
    self.assertEqual(finished.code, 0, finished.error)
    self.assertEqual(launching.evaluations(self.workdir), launching.evaluations(self.straight))
    self.assertIn('fed back', (self.workdir / 'report.html').read_text())
    results = pathlib.Path(parts[1]) / 'results.json'
    content = json.loads(results.read_text())
    content['evaluations'] = [
        {**each, 'seed': 1, 'perplexity': 2 * each['perplexity']} for each in content['evaluations']]
    results.write_text(json.dumps(content))
    finished = launching.run('sweep', *joined, f'--workdir={self.workdir}-seeds')
    self.assertIn('mean ± sample standard deviation of 2 seeds', finished.output)
    content['evaluations'][0]['seed'] = 0
    results.write_text(json.dumps(content))
    for flags, message in ((joined, 'has another score than those before it for row None of both seed 0'),
                           ([f'--join={launching.trained()}'], 'is no workdir of a sweep'),
                           (['--join=nowhere'], 'nowhere/config.json cannot be read')):
      finished = launching.run('sweep', *flags, f'--workdir={self.workdir}-refused')
      self.assertEqual(finished.code, 2)
      self.assertIn(message, finished.error)
      self.assertLen(finished.error.splitlines(), 1)

  def test_a_row_that_is_refused_leaves_the_others(self):
    rows = launching.folder() / 'refused.py'
    rows.write_text(_ROWS.replace('  return rows', """
  rows['fed back'].update(group_size=8, activations=16, two_level=True)  # whose groups are not static
  return rows"""))
    for expected in (['the model as it is', 'rounded', 'fed back', 'eight'], ['fed back']):
      finished = launching.run('sweep', *self.flags, f'--rows={rows}', f'--workdir={self.workdir}')
      self.assertEqual(finished.code, 2)
      mistakes = finished.error.splitlines()
      self.assertRegex(mistakes[0], "row 'fed back' is left out: .*: two-level scales .* static_groups")
      self.assertIn("1 of 3 rows were left out, 'fed back' first", mistakes[-1])
      self.assertEqual(
          [line.partition(': ')[2] for line in finished.output.splitlines() if line.startswith('row ')], expected)
      self.assertEqual(list(self.perplexities(self.workdir)), [None, 'rounded', 'eight'])

  def test_tasks(self):
    task = launching.folder() / 'words.jsonl'
    task.write_text('{"text": "some words to end with one"}\n')
    finished = launching.run('sweep', *self.flags[:2], f'--tasks={task}', '--only=rounded', f'--workdir={self.workdir}')
    self.assertEqual(finished.code, 0, finished.error)
    self.assertEqual([(entry.get('row'), entry['dataset']) for entry in launching.evaluations(self.workdir)],
                     [(None, 'words'), ('rounded', 'words')])

  def test_parts_and_lengths(self):
    finished = launching.run('sweep', *self.flags, f'--workdir={self.workdir}', '--only=.*e.*', '--part=2/3',
                             '--length=8', '--length=16')
    self.assertEqual(finished.code, 0, finished.error)
    told = [(entry.get('row'), entry['dataset'].rpartition(' at ')[2]) for entry in launching.evaluations(self.workdir)]
    self.assertEqual(told, [(None, '8'), (None, '16'), ('fed back', '8'), ('fed back', '16')])

  @parameterized.parameters(
      (['--rows='], '--rows=FILE is needed'),
      (['--rows=nothing.py'], "there is no file 'nothing.py'"),
      (['--rows=configs/quickstart.py'], 'defines no get_rows()'),
      (['--rows={rows}:many'], "invalid literal for int() with base 10: 'many'"),
      (['--rows={rows}:0'], "row 'rounded': config.calibration_windows is 0; it must be at least 1"),
      (['--rows={rows}:100000'], "row 'rounded': "),
      (['--rows={others}:number'], 'returns no configurations by name'),
      (['--rows={others}:nameless'], 'returns no configurations by name'),
      (['--rows={others}:dict'], 'returns no configurations by name'),
      (['--rows={others}:exit'], 'line 10: SystemExit: enough'),
      (['--only=(', ], '--only=( is not a regular expression'),
      (['--only=none'], "leaves none of 3 rows, by whole names such as 'rounded'"),
      (['--part=4/3'], '--part=4/3 is not one part of several'),
      (['--length=1'], '--length=1 does not lie between 2'))
  def test_a_mistake_is_one_line(self, flags, message):
    others = launching.folder() / 'others.py'
    others.write_text(_OTHERS)
    flags = [flag.format(rows=self.rows, others=others) for flag in flags]
    finished = launching.run('sweep', *self.flags, f'--workdir={self.workdir}', *flags)
    self.assertEqual(finished.code, 2)
    self.assertIn(message, finished.error)
    self.assertLen(finished.error.splitlines(), 1)
    self.assertFalse((self.workdir / 'results.json').exists())

  def test_a_model_that_is_not_finite_has_no_rows(self):
    model = model_directories.write(self.workdir / 'llama')
    arrays = model / 'model.safetensors'
    arrays.write_bytes(arrays.read_bytes()[:-4] + np.float32(np.nan).tobytes())
    finished = launching.run('sweep', f'--model={model}', *self.flags[1:], f'--calibration={self.flags[2][7:]}',
                             f'--workdir={self.workdir / "swept"}')
    self.assertEqual(finished.code, 4, finished)
    self.assertIn('non-finite values in ', finished.error)
    self.assertFalse((self.workdir / 'swept' / 'results.json').exists())


class RowsTest(parameterized.TestCase):

  @parameterized.parameters(*_FILES)
  def test_rows_are_recipes(self, name, argument):
    module = importlib.import_module(f'configs.sweeps.{name}')
    rows = module.get_rows(*([] if argument is None else [argument]))
    self.assertGreater(len(rows), 1)
    style = argument if argument in ('opt', 'bert') else 'llama'
    for config in rows.values():
      quantize_config.check(config)
      mode = config.activation_mode if config.activations < 16 else None
      quantize_config.recipe(config, mode).steps(staging.model_sites(networks.config(style)))
    self.assertLen({json.dumps(config.to_dict(), sort_keys=True) for config in rows.values()}, len(rows))
    self.assertIn(f'--rows=configs/sweeps/{name}.py', module.__doc__)


if __name__ == '__main__':
  absltest.main()
