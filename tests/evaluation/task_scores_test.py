"""Scores of tasks are those of the definition."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from jaxquant import errors
from jaxquant.data import tokenizers
from jaxquant.evaluation import generation
from jaxquant.evaluation import likelihood
from jaxquant.evaluation import task_scores
from jaxquant.evaluation import tasks
from jaxquant.models import config as model_config
from jaxquant.models import staging
from tests import model_directories
from tests import networks

_CONFIG = model_config.TransformerConfig(
    vocabulary=300, width=16, layers=1, heads=2, feed_forward=16, max_length=32, dtype='float32')


class TaskScoresTest(parameterized.TestCase):

  def test_choices_are_the_likeliest_and_the_likeliest_per_byte(self):
    # Four bytes and one, as UTF-8: the likeliest per character would be another.
    made = tasks.Task('task', tasks.CHOICE, tuple(tasks.Example('a', ('äö', 'b'), answer) for answer in (0, 1, 1)))
    nats = [(-3.0, -1.0), (-3.0, -1.0), (-5.0, -1.0)]
    got = task_scores.metrics(made, [likelihood.Likelihood(each, False) for pair in nats for each in pair])
    self.assertEqual((got['examples'], got['accuracy']), (3, 2 / 3))
    self.assertAlmostEqual(got['normalized_accuracy'], 2 / 3)  # The first and the third.
    self.assertAlmostEqual(got['accuracy_error'], math.sqrt(2 / 9 / 2))
    self.assertEqual(set(got), {'examples', 'accuracy', 'accuracy_error', 'normalized_accuracy'})

  def test_words_are_right_where_greedy_and_perplex_by_their_mean(self):
    made = tasks.Task('task', tasks.LAST_WORD, (tasks.Example('a', (' b',)), tasks.Example('a', (' c',))))
    got = task_scores.metrics(made, [likelihood.Likelihood(-1.0, True), likelihood.Likelihood(-3.0, False)])
    self.assertEqual((got['examples'], got['accuracy']), (2, 0.5))
    self.assertAlmostEqual(got['perplexity'], math.exp(2))
    self.assertTrue(math.isnan(task_scores.metrics(made._replace(examples=made.examples[:1]), [
        likelihood.Likelihood(-1.0, True)])['accuracy_error']))

  def _generation(self, *examples):
    """The task, its tokenizer, and a tree, with the tokens of the task."""
    task = tasks.Task('task', tasks.GENERATION, examples)
    tokenizer = tokenizers.Tokenizer(model_directories.tokenizer())
    params = networks.quick_jit(staging.make(_CONFIG).init)(jax.random.key(0), np.zeros((1, 1), np.int32))['params']
    return task, tokenizer, jax.tree.map(lambda leaf: 10 * leaf, params), task_scores.encode(task, tokenizer)

  def test_answers_are_right_where_they_are_generated(self):
    example = tasks.Example('ab ', ('',), tokens=6)
    task, tokenizer, params, pairs = self._generation(example)
    self.assertEqual(pairs, [likelihood.Pair(tokenizer.encode_prompt('ab '), [])])
    text, = generation.texts(params, _CONFIG, tokenizer, [pairs[0].context], limit=6)
    self.assertGreater(len(text.strip()), 1)
    whole = example._replace(continuations=(f' {text.strip()}\n',))
    end = text.strip()[-1]
    cut = example._replace(until=(end,), continuations=(text[:text.index(end)],))
    wrong = example._replace(continuations=(text.strip() + '!',))
    for given, share in (((whole,), 1), ((wrong,), 0), ((whole, wrong, cut, whole), 3 / 4)):
      task, _, _, pairs = self._generation(*given)
      got = task_scores.score(params, _CONFIG, tokenizer, task, pairs)
      self.assertEqual((got['examples'], got['accuracy']), (len(given), share))

  def test_more_tokens_than_the_model_sees_are_refused(self):
    task, tokenizer, params, pairs = self._generation(tasks.Example('ab', ('c',), tokens=32))
    with self.assertRaisesRegex(errors.UserError, 'task task: 32 tokens to generate .* 32'):
      task_scores.score(params, _CONFIG, tokenizer, task, pairs)


if __name__ == '__main__':
  absltest.main()
