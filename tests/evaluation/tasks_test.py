"""Files of tasks are read as they are meant or refused by line, and their scores are those of the definition."""

import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized

from jaxquant import errors
from jaxquant.evaluation import tasks

_GENERATION = {'context': 'a', 'answer': 'b'}
_CHOICE = {'id': 7, 'context': 'a', 'choices': [' b', ' cd'], 'answer': 1}


class TasksTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def _write(self, *lines, name='task.jsonl'):
    (self.folder / name).write_text('\n'.join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return str(self.folder / name)

  def test_kinds(self):
    choices, = tasks.read([self._write(_CHOICE, '', {**_CHOICE, 'answer': 0})])
    self.assertEqual(choices, tasks.Task('task', tasks.CHOICE, (
        tasks.Example('a', (' b', ' cd'), 1), tasks.Example('a', (' b', ' cd'), 0))))
    words, = tasks.read([self._write({'text': 'He closed the  door'}, {'text': 'word'})])
    self.assertEqual(words, tasks.Task('task', tasks.LAST_WORD, (
        tasks.Example('He closed the ', (' door',)), tasks.Example('', ('word',)))))
    drawn, = tasks.read([self._write({'context': 'a ', 'continuation': 'b c'})])
    self.assertEqual(drawn, tasks.Task('task', tasks.CONTINUATION, (tasks.Example('a ', ('b c',)),)))
    made, = tasks.read([self._write(_GENERATION, {**_GENERATION, 'until': ['.', '\n'], 'tokens': 3})])
    self.assertEqual(made, tasks.Task('task', tasks.GENERATION, (
        tasks.Example('a', ('b',), 0, ('\n',), 64), tasks.Example('a', ('b',), 0, ('.', '\n'), 3))))

  def test_directories_hold_a_task_in_each_file(self):
    self._write(_CHOICE, name='one.jsonl')
    self._write({'text': 'a b'}, name='one.more.jsonl')
    self._write('not a task', name='three.txt')
    self.assertEqual([task.name for task in tasks.read([str(self.folder)])], ['one', 'one.more'])
    with self.assertRaisesRegex(errors.UserError, 'two tasks are called one'):
      tasks.read([str(self.folder), str(self.folder / 'one.jsonl')])
    with self.assertRaisesRegex(errors.UserError, 'holds no task'):
      tasks.read([self.create_tempdir().full_path])

  @parameterized.parameters(
      ('{', 'task.jsonl:2: the line is not valid JSON'),
      ('[1]', 'task.jsonl:2: the line is not a JSON object'),
      ({'question': 'a'}, 'task.jsonl:2: there is no field "choices".*question'),
      ({**_CHOICE, 'choices': [' b']}, 'task.jsonl:2: .*"choices" is no list'),
      ({**_CHOICE, 'choices': [' b', 3]}, "task.jsonl:2: the field 'choices' is int"),
      ({**_CHOICE, 'choices': [' b', ' ']}, 'task.jsonl:2: what is to be predicted is blank'),
      ({**_CHOICE, 'answer': 2}, 'task.jsonl:2: .*"answer" is 2.* 0 to 1'),
      ({**_CHOICE, 'answer': True}, 'task.jsonl:2: .*"answer" is True'),
      ({'choices': [' b', ' c'], 'answer': 0}, "task.jsonl:2: there is no field 'context'"),
      ({'text': 'a b'}, 'task.jsonl:2: a last word, unlike'),
      ({**_GENERATION, 'until': '.'}, 'task.jsonl:2: .*"until" is no list'),
      ({**_GENERATION, 'tokens': 0}, 'task.jsonl:2: .*"tokens" is 0'),
      ({'text': 'a '}, 'task.jsonl:2: what is to be predicted is blank'))
  def test_lines_that_are_no_example_are_refused(self, line, words):
    with self.assertRaisesRegex(errors.UserError, words):
      tasks.read([self._write(_CHOICE, line)])

  def test_files_without_examples_are_refused(self):
    for path, words in ((self._write(''), 'holds no example'), (str(self.folder / 'no.jsonl'), 'cannot be read')):
      with self.assertRaisesRegex(errors.UserError, words):
        tasks.read([path])


if __name__ == '__main__':
  absltest.main()
