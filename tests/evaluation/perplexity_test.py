"""Perplexity and bits per byte against the definition.

Run with an argument, this file is the program on eight devices that one of its tests starts.
"""

import json
import math
import sys

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.evaluation import perplexity
from jaxquant.layers import sharding
from jaxquant.numerics import formats
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from tests import networks
from tests import source

# Five windows of eight, and one of three.
_TOKENS = np.random.default_rng(7).integers(0, 32, 43)
_BYTES = 100


def _score(params=None, style: str = 'llama', **options) -> perplexity.Score:
  params = networks.params(style) if params is None else params
  options = {'length': 8, 'batch_size': 4, **options}
  return perplexity.score(params, networks.config(style), _TOKENS, _BYTES, **options)


def _reference(style: str, length: int) -> float:
  """Negative log likelihood of the text, window by window without padding, the softmax in float64."""
  evaluate, total = networks.evaluator(networks.config(style), jit=networks.quick_jit), 0.0
  for start in range(0, len(_TOKENS), length):
    window = _TOKENS[start : start + length]
    if len(window) > 1:
      logits = np.asarray(evaluate(networks.params(style), window[None, :-1])[0], np.float64)
      chosen = logits[np.arange(len(window) - 1), window[1:]]
      total += float(np.sum(np.log(np.exp(logits).sum(axis=-1)) - chosen))
  return total


def _scores_on_a_mesh() -> list[list[float]]:
  """(nats, predicted) for parameters replicated and fully sharded, with and without a mesh in scope."""
  mesh, params = sharding.data_mesh(), networks.params('llama')
  place = lambda fully: jax.device_put(params, sharding.tree_shardings(mesh, params, fully))
  results = [_score(place(False), length=3, batch_size=8, mesh=mesh)[:2]]
  with jax.set_mesh(mesh):
    results.append(_score(place(True), length=3, batch_size=8, mesh=mesh)[:2])
    # Eight devices do not divide a batch of six.
    results.append(_score(place(True), length=3, batch_size=6, mesh=mesh)[:2])
  return results


class WindowsTest(parameterized.TestCase):

  def test_last_window_is_filled_up_and_marked(self):
    rows, present = perplexity.windows(np.array([5, 6, 7, 8, 9]), 3)
    np.testing.assert_array_equal(rows, np.int32([[5, 6, 7], [8, 9, 0]]), strict=True)
    np.testing.assert_array_equal(present, [[True, True, True], [True, True, False]])

  @parameterized.parameters((4, 2, 2), (5, 2, 3), (3, 8, 1))
  def test_every_token_is_in_one_window(self, tokens, length, count):
    rows, present = perplexity.windows(np.arange(1, tokens + 1), length)
    self.assertEqual(rows.shape, (count, min(length, tokens)))
    np.testing.assert_array_equal(rows[present], np.arange(1, tokens + 1))
    self.assertEqual(rows[~present].sum(), 0)

  def test_a_short_text_is_a_window_of_its_own_length(self):
    self.assertEqual([each.shape for each in perplexity.windows(np.arange(5), 4096)], [(1, 5), (1, 5)])

  @parameterized.parameters((1, 8, 'a text of 1 tokens has none'), (0, 8, 'a text of 0 tokens'), (5, 1, 'windows of 1'))
  def test_texts_and_windows_without_a_token_to_predict_are_refused(self, tokens, length, message):
    with self.assertRaisesRegex(errors.UserError, message):
      perplexity.windows(np.arange(tokens), length)


class ScoreTest(parameterized.TestCase):

  def test_figures_of_a_score(self):
    score = perplexity.Score(nats=10 * math.log(2), predicted=5, tokens=6, text_bytes=8)
    self.assertAlmostEqual(score.perplexity, 4)
    # Two bits a predicted token, and six tokens for eight bytes.
    self.assertAlmostEqual(score.bits_per_byte, 2 * 6 / 8)

  def test_perplexity_beyond_floats_is_infinite(self):
    self.assertEqual(perplexity.Score(1e4, 5, 6, 8).perplexity, math.inf)

  def test_likelihood_that_is_no_number_gives_none(self):
    score = perplexity.Score(math.nan, 5, 6, 8)
    self.assertTrue(math.isnan(score.perplexity) and math.isnan(score.bits_per_byte))

  @parameterized.parameters(('llama', 8, 5 * 7 + 2), ('opt', 8, 5 * 7 + 2), ('llama', 2, 21), ('opt', 16, 2 * 15 + 10))
  def test_likelihood_is_that_of_the_definition(self, style, length, predicted):
    score = _score(style=style, length=length)
    self.assertEqual((score.predicted, score.tokens, score.text_bytes), (predicted, 43, _BYTES))
    self.assertAlmostEqual(score.nats / _reference(style, length), 1, delta=1e-6)

  def test_an_encoder_does_not_see_what_fills_a_window_up(self):
    """The rest of the text scores as a text of its own does."""
    options = dict(length=16, batch_size=4)
    params, config = networks.params('bert'), networks.config('bert')
    parts = [perplexity.score(params, config, tokens, _BYTES, **options) for tokens in (_TOKENS[:32], _TOKENS[32:])]
    whole = _score(style='bert', **options)
    self.assertEqual(whole.predicted, sum(part.predicted for part in parts))
    self.assertAlmostEqual(whole.nats / sum(part.nats for part in parts), 1, delta=1e-6)

  def test_length_is_that_of_the_model_by_default(self):
    self.assertEqual(_score(length=None), _score(length=16))

  def test_batches_and_what_fills_them_up_do_not_matter(self):
    whole, filled = _score(batch_size=100), _score(batch_size=4)
    self.assertEqual(filled.predicted, whole.predicted)
    self.assertAlmostEqual(filled.nats / whole.nats, 1, delta=1e-6)

  def test_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large(self):
    params = trees.put(networks.params('llama'), 'head/kernel', jnp.zeros((16, 32)))
    self.assertAlmostEqual(_score(params).perplexity, 32, delta=1e-4)

  def test_codes_are_scored_alike_by_both_implementations(self):
    params = networks.params('llama')
    head = {'kernel': quantize.quantize(params['head']['kernel'], formats.parse('int8')),
            'input': {'quantizer': quantizers.DynamicQuantizer(formats.parse('uint8'))}}
    params = trees.put(params, 'head', head)
    simulated, integer = (_score(params, implementation=name) for name in ('simulated', 'xla'))
    self.assertEqual(simulated, integer)
    self.assertBetween(abs(simulated.nats / _score().nats - 1), 1e-6, 0.01)

  def test_eight_devices_score_like_one(self):
    scores = source.output_on_eight_devices(__file__, 'mesh')
    np.testing.assert_allclose(json.loads(scores), [_score(length=3)[:2]] * 3, rtol=1e-6)


if __name__ == '__main__':
  if sys.argv[1:] == ['mesh']:
    print(json.dumps(_scores_on_a_mesh()))
  else:
    absltest.main()
