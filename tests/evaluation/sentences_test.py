"""Sentence embeddings: pooled over a text's own tokens, whatever it is evaluated together with."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.data import tokenizers
from jaxquant.evaluation import sentences
from jaxquant.interop import configs
from jaxquant.models import staging
from tests import model_directories

_CONFIG = configs.read(model_directories.CONFIGS['bert'])
_TEXTS = ('one', 'a longer text', 'two', 'six', 'one')


class SentencesTest(parameterized.TestCase):

  def _embed(self, texts, **options):
    tokenizer = tokenizers.Tokenizer(model_directories.tokenizer())
    return sentences.embed(self._params(), _CONFIG, tokenizer, texts, **options)

  def _params(self):
    return model_directories.params(model_directories.CONFIGS['bert'])

  @parameterized.parameters('mean', 'first')
  def test_pooled_are_the_hidden_states_of_the_text(self, pooling):
    got = self._embed(['one'], pooling=pooling, normalized=False)[0]
    ids = jnp.asarray([model_directories.tokenizer().encode('one').ids])
    self.assertEqual(ids.shape, (1, 4))
    headless = configs.read({**model_directories.CONFIGS['bert'], 'architectures': ['BertModel']})
    params = {key: value for key, value in self._params().items() if key not in ('transform', 'transform_norm', 'head')}
    hidden = np.asarray(staging.make(headless).apply({'params': params}, ids))[0]
    np.testing.assert_allclose(got, hidden[0] if pooling == 'first' else hidden.mean(axis=0), atol=1e-5)

  def test_each_text_by_itself(self):
    together = self._embed(_TEXTS, batch_size=2)
    for text, embedding in zip(_TEXTS, together):
      np.testing.assert_allclose(self._embed([text])[0], embedding, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=-1), 1, atol=1e-6)
    self.assertGreater(np.abs(together[0] - together[2]).max(), 1e-2)

  def test_mistakes_are_named(self):
    with self.assertRaisesRegex(errors.UserError, "pooling is 'max'; there are mean, first"):
      self._embed(['one'], pooling='max')
    with self.assertRaisesRegex(errors.UserError, r"'x+' has 41 tokens; there may be 1 to 32"):
      self._embed(['x' * 40])
    with self.assertRaisesRegex(errors.UserError, 'the model is a decoder'):
      config = configs.read(model_directories.CONFIGS['llama'])
      sentences.embed({}, config, tokenizers.Tokenizer(model_directories.tokenizer()), ['one'])


if __name__ == '__main__':
  absltest.main()
