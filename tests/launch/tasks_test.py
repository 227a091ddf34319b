"""`launch.evaluate --tasks` scores local tasks as the library does: in results, table and report; else one line."""

import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from jaxquant.data import tokenizers
from jaxquant.evaluation import task_scores
from jaxquant.evaluation import tasks
from jaxquant.interop import source
from tests import launching
from tests import model_directories

_CHOICES = [{'context': 'The', 'choices': [' cat', ' list', ' an object'], 'answer': i % 3} for i in range(4)]
_ANSWERS = [{'context': 'The', 'answer': answer, 'tokens': 4} for answer in ('cat', 'list')]
_WORDS = [{'text': text} for text in ('a list of the', 'in the', 'one of them')]


class TasksTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = launching.folder() / 'tasks'
    (cls.folder / 'both').mkdir(parents=True)
    for name, lines in (('answers', _ANSWERS), ('choices', _CHOICES), ('words', _WORDS)):
      (cls.folder / 'both' / f'{name}.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    (cls.folder / 'bad.jsonl').write_text('{"context": "a", "choices": [" b", " c"]}')
    (cls.folder / 'long.jsonl').write_text(json.dumps({'context': 'a', 'continuation': ' b' * 40}))
    for family in ('llama', 'bert'):
      model_directories.write(cls.folder / family, family)

  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(self.create_tempdir().full_path) / 'workdir'

  def _run(self, model, *flags):
    return launching.run('evaluate', f'--model={model}', f'--workdir={self.workdir}', *flags)

  def test_imported_model(self):
    finished = self._run(self.folder / 'llama', f'--tasks={self.folder / "both"}')
    self.assertEqual((finished.code, finished.error), (0, ''))
    opened = source.DirectorySource(self.folder / 'llama')
    tokenizer = tokenizers.Tokenizer.load(self.folder / 'llama')
    recorded = {record['dataset']: record for record in launching.evaluations(self.workdir)}
    self.assertEqual(list(recorded), ['answers', 'choices', 'words'])
    for task in tasks.read([str(self.folder / 'both')]):
      pairs = task_scores.encode(task, tokenizer)
      scores = task_scores.score(opened.whole(), opened.config, tokenizer, task, pairs, stop=[tokenizer.end_of_text])
      for name, value in scores.items():
        np.testing.assert_allclose(recorded[task.name][name], value, rtol=1e-4)

  def test_workdir_at_every_precision_in_table_and_report(self):
    finished = self._run(launching.trained(), f'--tasks={self.folder / "both"}', '--variant=both')
    self.assertEqual((finished.code, finished.error), (0, ''))
    recorded = launching.evaluations(self.workdir)
    self.assertLen(recorded, 15)
    page = (self.workdir / 'report.html').read_text()
    for caption in ('Accuracy on choices, higher is better', 'Normalized accuracy on choices, higher is better',
                    'Accuracy on words, higher is better', 'Perplexity on words, lower is better'):
      self.assertIn(caption, finished.output)
      self.assertIn(caption, page)
    self.assertNotIn('Perplexity on choices', page)

  @parameterized.named_parameters(
      ('missing', 'llama', 'nowhere.jsonl', ['nowhere.jsonl']),
      ('bad_line', 'llama', 'bad.jsonl', ['bad.jsonl:1', 'answer']),
      ('long_word', 'llama', 'long.jsonl', ['task long', '80 tokens', '32']),
      ('empty_folder', 'llama', 'llama', ['holds no task']),
      ('encoder', 'bert', 'both', ['encoder']))
  def test_refused(self, model, task, words):
    finished = self._run(self.folder / model, f'--tasks={self.folder / task}')
    self.assertEqual(finished.code, 2, finished)
    self.assertLen(finished.error.splitlines(), 1)
    self.assertFalse(self.workdir.exists())
    for word in words:
      self.assertIn(word, finished.error)


if __name__ == '__main__':
  absltest.main()
