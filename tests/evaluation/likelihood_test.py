"""Likelihoods of continuations are those of the definition, and contexts meet continuations where tokens do."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from jaxquant import errors
from jaxquant.data import tokenizers
from jaxquant.evaluation import generation
from jaxquant.evaluation import likelihood
from tests import model_directories
from tests import networks

_TEXT = 'the cat sat on the mat, and the dog sat on the cat. ' * 20
_RNG = np.random.default_rng(3)
_PAIRS = [likelihood.Pair(_RNG.integers(0, 32, context).tolist(), _RNG.integers(0, 32, continuation).tolist())
          for context, continuation in ((3, 1), (1, 5), (9, 2), (15, 2), (30, 3), (4, 16), (2, 2))]


@functools.cache
def _trained():
  """Merges words with the blanks before them, and puts no special token in front."""
  return tokenizers.Tokenizer.train([_TEXT], 270)


@functools.cache
def _bytes():
  """A token for each byte, behind <s>."""
  return tokenizers.Tokenizer(model_directories.tokenizer())


def _score(pairs=_PAIRS, style='llama', **options):
  return likelihood.score(networks.params(style), networks.config(style), pairs, **options)


def _reference(pair, length):
  """(nats, greedy) of one pair, nothing filled up, the softmax in float64."""
  tokens = (pair.context + pair.continuation)[-length - 1:]
  evaluate = networks.evaluator(networks.config('llama'), jit=networks.quick_jit)
  padded = np.zeros((1, 16), np.int32)
  padded[0, :len(tokens) - 1] = tokens[:-1]
  logits = np.asarray(evaluate(networks.params('llama'), padded)[0], np.float64)
  nats, greedy = 0.0, True
  for place in range(len(tokens) - 1 - len(pair.continuation), len(tokens) - 1):
    row, target = logits[place], tokens[place + 1]
    nats += row[target] - np.log(np.exp(row).sum())
    greedy &= int(np.argmax(row)) == target
  return nats, greedy


class EncodePairTest(parameterized.TestCase):

  def test_blanks_that_end_the_context_count_to_the_continuation(self):
    for tokenizer in (_trained(), _bytes()):
      want = likelihood.encode_pair(tokenizer, 'the cat', '  sat')
      self.assertEqual(likelihood.encode_pair(tokenizer, 'the cat ', ' sat'), want)
      self.assertEqual(likelihood.encode_pair(tokenizer, 'the cat  ', 'sat'), want)
      self.assertEqual(tokenizer.decode(want.continuation), '  sat')

  def test_continuation_is_what_both_together_have_beyond_the_context(self):
    tokenizer = _trained()
    pair = likelihood.encode_pair(tokenizer, 'on the', ' cat sat')
    self.assertEqual(pair.context + pair.continuation, tokenizer.encode_prompt('on the cat sat'))
    self.assertLess(len(pair.continuation), len(' cat sat'))
    # A border within a token: what the context alone has is its context all the same.
    pair = likelihood.encode_pair(tokenizer, 'on t', 'he cat sat on')
    whole = tokenizer.encode_prompt('on the cat sat on')
    self.assertNotEqual(whole[:len(pair.context)], pair.context)
    self.assertEqual(pair.continuation, whole[len(pair.context):])

  def test_special_tokens_stand_in_front_and_make_a_context_of_an_empty_one(self):
    self.assertEqual(likelihood.encode_pair(_bytes(), 'a', 'b').context[0], 0)
    self.assertLen(likelihood.encode_pair(_bytes(), 'a', 'b').context, 2)
    self.assertEqual(likelihood.encode_pair(_bytes(), '', 'b').context, [0])
    self.assertEqual(likelihood.encode_pair(_bytes(), '<s>a', 'b'), likelihood.encode_pair(_bytes(), 'a', 'b'))
    pair = likelihood.encode_pair(_trained(), ' ', 'the')
    self.assertEqual(pair.context, [_trained().end_of_text])
    self.assertEqual(_trained().decode(pair.continuation), ' the')

  def test_nothing_to_predict_or_to_predict_it_from_is_refused(self):
    for tokenizer, context, continuation in ((_bytes(), 'a', ''), (_trained(), 'on t', 'he cat')):
      with self.assertRaisesRegex(errors.UserError, f"continuation '{continuation}' has no tokens of its own"):
        likelihood.encode_pair(tokenizer, context, continuation)
    model = model_directories.tokenizer()
    model.post_processor = None
    bare = tokenizers.Tokenizer(model)
    object.__setattr__(bare, 'end_of_text', None)
    with self.assertRaisesRegex(errors.UserError, "nothing stands before 'b'"):
      likelihood.encode_pair(bare, '', 'b')


class ScoreTest(parameterized.TestCase):

  @parameterized.parameters(dict(), dict(batch_tokens=16), dict(length=16))
  def test_likelihoods_are_those_of_the_definition_cut_off_from_the_left(self, **options):
    for got, pair in zip(_score(**options), _PAIRS, strict=True):
      nats, greedy = _reference(pair, 16)
      self.assertAlmostEqual(got.nats, nats, delta=1e-4)
      self.assertEqual(got.greedy, greedy)

  def test_shorter_lengths_cut_off_more(self):
    for got, pair in zip(_score(_PAIRS[:5], length=6), _PAIRS):
      self.assertAlmostEqual(got.nats, _reference(pair, 6)[0], delta=1e-4)

  def test_what_the_model_would_say_is_greedy_and_nothing_else_is(self):
    made = [int(token) for (token,) in generation.stream(
        networks.params('llama'), networks.config('llama'), [[5, 9]], limit=6)]
    for said, greedy in ((made, True), (made[:-1] + [(made[-1] + 1) % 32], False),
                         ([(made[0] + 1) % 32] + made[1:], False)):
      self.assertEqual(_score([likelihood.Pair([5, 9], said)])[0].greedy, greedy)
    self.assertEqual(_score([]), [])

  def test_encoders_and_continuations_longer_than_the_context_are_refused(self):
    with self.assertRaisesRegex(errors.UserError, 'encoder'):
      _score(style='bert')
    with self.assertRaisesRegex(errors.UserError, '17 tokens exceeds the 16'):
      _score([likelihood.Pair([1], [1] * 17)])
    with self.assertRaisesRegex(errors.UserError, 'a context has no tokens'):
      _score([likelihood.Pair([1], [1]), likelihood.Pair([], [1])])


if __name__ == '__main__':
  absltest.main()
