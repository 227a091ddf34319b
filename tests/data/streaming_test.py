"""What tokens add to a text, one after the other, joins to the text, and never holds half a character."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tokenizers as hf
from tokenizers import decoders
from tokenizers import models
from tokenizers import normalizers

from jaxquant.data import streaming
from jaxquant.data import tokenizers

_TEXT = 'Zürich  costs 5 € a day: 日本語 \U0001f98e\U0001f9ea, he\u0301 said.\n\n' * 3


def _byte_level():
  return tokenizers.Tokenizer.train([_TEXT], 280)


def _byte_fallback():
  """As sentencepiece models have it: a space begins a word, and unknown characters are spelled in bytes."""
  words = ['▁', *sorted(set('Zrich costadye:,.aisn\n5')), '▁c', '▁a']
  vocabulary = {token: i for i, token in enumerate(['<unk>', *(f'<0x{byte:02X}>' for byte in range(256)), *words])}
  backend = hf.Tokenizer(models.BPE(vocabulary, [('▁', 'c'), ('▁', 'a')], byte_fallback=True, unk_token='<unk>'))
  backend.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
  backend.decoder = decoders.Sequence(
      [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(' ', 1, 0)])
  return tokenizers.Tokenizer(backend)


_TOKENIZERS = {'byte level': _byte_level, 'byte fallback': _byte_fallback}


def _pieces(stream, tokens):
  return [stream.add(token) for token in tokens]


class TextStreamTest(parameterized.TestCase):

  @parameterized.product(name=list(_TOKENIZERS), prompt=[0, 1, 5, 40])
  def test_pieces_join_to_the_text(self, name, prompt):
    tokenizer = _TOKENIZERS[name]()
    tokens = tokenizer.encode_prompt(_TEXT)
    whole = tokenizer.decode(tokens)
    self.assertEqual(whole, _TEXT)
    while (said := tokenizer.decode(tokens[:prompt])).endswith('\ufffd'):
      prompt += 1
    stream = streaming.TextStream(tokenizer, tokens[:prompt])
    pieces = _pieces(stream, tokens[prompt:])
    self.assertEqual(said + ''.join(pieces), whole)
    self.assertFalse(any('\ufffd' in piece for piece in pieces))
    # Most are said at once, and only characters of several tokens are waited for.
    self.assertGreater(np.mean([piece != '' for piece in pieces]), 0.5)
    self.assertIn('', pieces)

  def test_bytes_that_are_no_text_are_said_in_the_end(self):
    tokenizer = _byte_level()
    tokens = np.random.default_rng(0).integers(0, tokenizer.vocab_size, 400)
    stream = streaming.TextStream(tokenizer)
    self.assertEqual(''.join(_pieces(stream, tokens)) + stream.rest(), tokenizer.decode(tokens))
    half = tokenizer.encode_prompt('日')[:1]
    stream = streaming.TextStream(tokenizer)
    self.assertEqual((_pieces(stream, half), stream.rest(), stream.rest()), ([''], '\ufffd', ''))


if __name__ == '__main__':
  absltest.main()
