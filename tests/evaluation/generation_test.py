"""Generated tokens are those of the whole forward, drawn as asked for, and end where they should."""

import itertools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.data import tokenizers
from jaxquant.evaluation import generation
from tests import model_directories
from tests import networks

_PROMPTS = ([3, 1, 4], [1, 5, 9, 2, 6], [8])
_LIKELY = np.log(np.array([0.05, 0.5, 0.15, 0.3]))  # of four tokens
_DRAWS = 4000


def _stream(style='llama', prompts=_PROMPTS, limit=8, **options):
  """The tokens of every row, [batch, tokens], and `generation.ENDED` behind its end."""
  made = list(generation.stream(networks.params(style), networks.config(style), prompts, limit=limit, **options))
  return np.stack(made, axis=1) if made else np.zeros((len(prompts), 0), int)


def _greedy(style, prompt, count):
  """The likeliest tokens one after the other, by the whole forward."""
  evaluate = networks.evaluator(networks.config(style), jit=networks.quick_jit)
  tokens = list(prompt)
  for _ in range(count):
    padded = np.zeros((1, 16), np.int32)
    padded[0, :len(tokens)] = tokens
    tokens.append(int(np.argmax(evaluate(networks.params(style), padded)[0, len(tokens) - 1])))
  return tokens[len(prompt):]


def _shares(sampling, key=0):
  """How often each of four tokens is drawn."""
  chosen = generation.choose(jnp.tile(jnp.asarray(_LIKELY), (_DRAWS, 1)), jax.random.key(key), sampling)
  return np.bincount(chosen, minlength=4) / _DRAWS


class StreamTest(parameterized.TestCase):

  @parameterized.parameters('llama', 'opt')
  def test_greedy_tokens_are_the_likeliest_of_the_whole_forward(self, style):
    got = _stream(style)
    for row, prompt in zip(got, _PROMPTS):
      self.assertEqual(row.tolist(), _greedy(style, prompt, 8))
    self.assertGreater(len(np.unique(got)), 1)

  def test_rows_end_at_their_stop_tokens(self):
    whole = _stream()
    first = {token: [row.tolist().index(token) for row in whole if token in row] for token in np.unique(whole)}
    token = next(token for token, ends in first.items() if len(ends) == 1 and 0 < ends[0] < 7)
    ended = np.cumsum(whole == token, axis=1) > 0
    np.testing.assert_array_equal(_stream(stop=[token]), np.where(ended, generation.ENDED, whole))
    self.assertEqual(_stream(stop=np.unique(whole)).shape, (3, 0))

  def test_draws_depend_on_the_key_alone(self):
    sampling = generation.Sampling(1.5, 0.9)
    draw = lambda key: _stream(sampling=sampling, key=jax.random.key(key))
    np.testing.assert_array_equal(draw(1), draw(1))
    self.assertGreater(np.mean(draw(1) != draw(2)), 0.3)

  @parameterized.parameters(2, 3, 16)
  def test_bursts_change_no_token(self, burst):
    options = dict(sampling=generation.Sampling(1.5), limit=6)
    whole = _stream(**options)
    np.testing.assert_array_equal(_stream(burst=burst, **options), whole)
    # The first row ends within a burst, and the last of the context is reached within one.
    stop = [whole[0, 1]]
    np.testing.assert_array_equal(_stream(burst=burst, stop=stop, **options), _stream(stop=stop, **options))
    filling = dict(prompts=[[1] * 12], limit=4)
    np.testing.assert_array_equal(_stream(burst=burst, **filling), _stream(**filling))

  def test_a_burst_has_tokens(self):
    with self.assertRaisesRegex(errors.UserError, 'not of 0'):
      _stream(burst=0)

  def test_prompts_may_fill_the_context_with_what_follows(self):
    self.assertEqual(_stream(prompts=[[1] * 12], limit=4).shape, (1, 4))
    for prompts, limit, words in (
        ([[1] * 12], 5, '12 tokens and 5 further ones exceed .* 16'), ([[1], []], 2, 'no tokens'),
        ([], 2, 'no prompt')):
      with self.assertRaisesRegex(errors.UserError, words):
        _stream(prompts=prompts, limit=limit)


class TextsTest(absltest.TestCase):

  def test_special_tokens_are_no_text_and_end_it_where_they_are_named(self):
    tokenizer = tokenizers.Tokenizer(model_directories.tokenizer())
    first, last, (a, b) = tokenizer.special['<s>'], tokenizer.special['</s>'], tokenizer.encode_bare('ab')
    config, made = networks.config('llama'), [a, first, b, last, a]

    def stream(params, config, prompts, *, stop, **options):
      del params, config, prompts, options
      yield from ([token] for token in itertools.takewhile(lambda token: token not in stop, made))

    with mock.patch.object(generation, 'stream', stream):
      texts = lambda **options: generation.texts({}, config, tokenizer, [[a]], limit=5, **options)
      self.assertEqual(texts(), ['aba'])
      self.assertEqual(texts(until=['</s>']), ['ab'])
      self.assertEqual(texts(until=['b', '</s>']), ['a'])
      self.assertEqual(texts(until=['<s>'], stop=[last]), ['a'])


  def test_batches_have_draws_of_their_own(self):
    tokenizer, config = tokenizers.Tokenizer(model_directories.tokenizer()), networks.config('llama')

    def keys(**options):
      with mock.patch.object(generation, 'stream', wraps=lambda *args, key, **rest: seen.append(key) or ()):
        seen = []
        generation.texts({}, config, tokenizer, [[1, 2]] * 6, limit=6, batch_tokens=16, **options)
        return [jax.random.key_data(key).tolist() for key in seen]

    self.assertLen(keys(), 3)
    self.assertLen({*map(tuple, keys())}, 3)
    self.assertEqual(keys(), keys(key=jax.random.key(0)))
    self.assertFalse({*map(tuple, keys())} & {*map(tuple, keys(key=jax.random.key(1)))})


class ChooseTest(parameterized.TestCase):

  @parameterized.parameters(
      (generation.Sampling(), [0, 1, 0, 0]),
      (generation.Sampling(1.0), [0.05, 0.5, 0.15, 0.3]),
      (generation.Sampling(0.5), np.square([0.05, 0.5, 0.15, 0.3]) / 0.365),
      (generation.Sampling(1.0, 0.9), [0, 0.5 / 0.95, 0.15 / 0.95, 0.3 / 0.95]),
      (generation.Sampling(1.0, 0.75), [0, 0.625, 0, 0.375]),
      (generation.Sampling(1.0, 1e-6), [0, 1, 0, 0]), (generation.Sampling(1e-30), [0, 1, 0, 0]),
      (generation.Sampling(1e-40), [0, 1, 0, 0]), (generation.Sampling(5e-324, 0.5), [0, 1, 0, 0]))
  def test_tokens_are_drawn_as_often_as_they_are_likely(self, sampling, shares):
    got = _shares(sampling)
    np.testing.assert_allclose(got, shares, atol=4 * 0.5 / _DRAWS ** 0.5)
    np.testing.assert_array_equal(got > 0, np.asarray(shares) > 0)

  @parameterized.parameters((-1.0, 1.0, 'temperature'), (float('nan'), 1.0, 'temperature'), (1.0, 0.0, 'top_p'),
                            (1.0, 1.5, 'top_p'))
  def test_values_out_of_range_are_refused(self, temperature, top_p, words):
    with self.assertRaisesRegex(errors.UserError, words):
      generation.Sampling(temperature, top_p).check()


if __name__ == '__main__':
  absltest.main()
