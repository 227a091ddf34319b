"""What models predict: the next token, and tokens that are hidden from an encoder."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant.training import tasks
from tests import networks

_ENCODER, _DECODER = networks.config('bert'), networks.config('llama')
_ROWS, _LENGTH = 64, 200
_predictions = jax.jit(tasks.predictions, static_argnums=0)


def _tokens(seed=0):
  return jnp.asarray(np.random.default_rng(seed).integers(0, _ENCODER.mask_token, (_ROWS, _LENGTH + 1)), jnp.int32)


class PredictionsTest(parameterized.TestCase):

  def test_a_decoder_predicts_the_next_token(self):
    inputs, targets, weights = _predictions(_DECODER, _tokens())
    np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
    np.testing.assert_array_equal(weights, 1)

  def test_an_encoder_predicts_15_in_100_of_which_most_are_masked(self):
    inputs, targets, weights = map(np.asarray, _predictions(_ENCODER, _tokens()))
    np.testing.assert_array_equal(targets, _tokens()[:, :-1])
    hidden = weights > 0
    self.assertAlmostEqual(hidden.mean(), 0.15, delta=0.01)
    self.assertAlmostEqual(weights.mean(), 1.0, delta=0.07)
    np.testing.assert_array_equal(inputs[~hidden], targets[~hidden])
    masked = inputs[hidden] == _ENCODER.mask_token
    self.assertAlmostEqual(masked.mean(), 0.8, delta=0.03)
    kept = (inputs == targets)[hidden]
    self.assertAlmostEqual(kept.mean(), 0.1 + 0.1 / _ENCODER.mask_token, delta=0.03)
    self.assertLess(inputs[hidden][~masked].max(), _ENCODER.mask_token)

  def test_what_is_hidden_follows_from_step_and_row(self):
    """Not from the rows around it, hence not from the number of devices or microbatches."""
    weights = lambda tokens, step: np.asarray(_predictions(_ENCODER, tokens, step)[2])
    whole = weights(_tokens(), 3)
    np.testing.assert_array_equal(weights(_tokens()[::-1], 3), whole[::-1])
    np.testing.assert_array_equal(weights(_tokens()[5:9], 3), whole[5:9])
    self.assertFalse(np.array_equal(weights(_tokens(), 4), whole))
    self.assertFalse(np.array_equal(whole[0], whole[1]))

  @parameterized.parameters('bert', 'llama')
  def test_tokens_that_fill_a_window_up_do_not_count(self, style):
    present = jnp.arange(_LENGTH)[None] < jnp.asarray([[_LENGTH], [50]])
    inputs, targets, counted = tasks.scored(networks.config(style), _tokens()[:2, :-1], present)
    self.assertEqual(inputs.shape, (2, _LENGTH))
    self.assertEqual(targets.shape, inputs.shape)
    self.assertEqual(counted.shape, inputs.shape)
    self.assertGreater(counted[1].sum(), 0)
    self.assertEqual(counted[1, 50:].sum(), 0)

  def test_a_decoder_predicts_what_comes_next_in_the_window(self):
    tokens, present = _tokens()[:2], jnp.ones((2, _tokens().shape[1]), bool)
    inputs, targets, counted = tasks.scored(networks.config('llama'), tokens, present)
    np.testing.assert_array_equal(inputs, tokens)
    np.testing.assert_array_equal(targets[:, :-1], tokens[:, 1:])
    np.testing.assert_array_equal(counted, np.arange(tokens.shape[1]) < tokens.shape[1] - 1 + np.zeros((2, 1)))


if __name__ == '__main__':
  absltest.main()
