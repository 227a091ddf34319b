"""Files of tasks are read as they are meant or refused by line, and their scores are those of the definition."""

import json
import math
import pathlib

from absl.testing import absltest
from absl.testing import parameterized

from jaxquant import errors
from jaxquant.evaluation import likelihood
from jaxquant.evaluation import tasks

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
    self.assertEqual(choices, tasks.Task('task', True, (
        tasks.Example('a', (' b', ' cd'), 1), tasks.Example('a', (' b', ' cd'), 0))))
    words, = tasks.read([self._write({'text': 'He closed the  door'}, {'text': 'word'})])
    self.assertEqual(words, tasks.Task('task', False, (
        tasks.Example('He closed the ', (' door',)), tasks.Example('', ('word',)))))
    drawn, = tasks.read([self._write({'context': 'a ', 'continuation': 'b c'})])
    self.assertEqual(drawn.examples, (tasks.Example('a ', ('b c',)),))

  def test_directories_hold_a_task_in_each_file(self):
    self._write(_CHOICE, name='one.jsonl')
    self._write({'text': 'a b'}, name='two.jsonl')
    self._write('not a task', name='three.txt')
    self.assertEqual([task.name for task in tasks.read([str(self.folder)])], ['one', 'two'])
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
      ({'text': 'a '}, 'task.jsonl:2: what is to be predicted is blank'))
  def test_lines_that_are_no_example_are_refused(self, line, words):
    with self.assertRaisesRegex(errors.UserError, words):
      tasks.read([self._write(_CHOICE, line)])

  def test_files_without_examples_are_refused(self):
    for path, words in ((self._write(''), 'holds no example'), (str(self.folder / 'no.jsonl'), 'cannot be read')):
      with self.assertRaisesRegex(errors.UserError, words):
        tasks.read([path])

  def test_choices_are_the_likeliest_and_the_likeliest_per_byte(self):
    # Four bytes and one, as UTF-8: the likeliest per character would be another.
    made = tasks.Task('task', True, tuple(tasks.Example('a', ('äö', 'b'), answer) for answer in (0, 1, 1)))
    nats = [(-3.0, -1.0), (-3.0, -1.0), (-5.0, -1.0)]
    got = tasks.metrics(made, [likelihood.Likelihood(each, False) for pair in nats for each in pair])
    self.assertEqual((got['examples'], got['accuracy']), (3, 2 / 3))
    self.assertAlmostEqual(got['normalized_accuracy'], 2 / 3)  # The first and the third.
    self.assertAlmostEqual(got['accuracy_error'], math.sqrt(2 / 9 / 2))
    self.assertEqual(set(got), {'examples', 'accuracy', 'accuracy_error', 'normalized_accuracy'})

  def test_words_are_right_where_greedy_and_perplex_by_their_mean(self):
    made = tasks.Task('task', False, (tasks.Example('a', (' b',)), tasks.Example('a', (' c',))))
    got = tasks.metrics(made, [likelihood.Likelihood(-1.0, True), likelihood.Likelihood(-3.0, False)])
    self.assertEqual((got['examples'], got['accuracy']), (2, 0.5))
    self.assertAlmostEqual(got['perplexity'], math.exp(2))
    self.assertTrue(math.isnan(tasks.metrics(made._replace(examples=made.examples[:1]), [
        likelihood.Likelihood(-1.0, True)])['accuracy_error']))


if __name__ == '__main__':
  absltest.main()
