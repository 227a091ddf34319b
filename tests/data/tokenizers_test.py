"""Tokenizers lose no text, depend on nothing but their arguments, and cutting long texts does not show."""

import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tokenizers as hf
from tokenizers import decoders
from tokenizers import models
from tokenizers import normalizers
from tokenizers import pre_tokenizers
from tokenizers import processors
from tokenizers import trainers

from jaxquant import errors
from jaxquant.data import tokenizers

_PROSE = pathlib.Path(hf.__file__).read_text(encoding='utf-8') + pathlib.Path(parameterized.__file__).read_text()
_AWKWARD = (
    'Zürich\n\n\n  indented\r\nwindows.\r\n\r\n\ttabs \n trailing  \n\n"Quoted."\nNext (line).\n'
    "日本語。\n🦎🧪👩‍👩‍👧\nit's\nwe'll\n12\n34,5\n\x00\x1f\x85\u2028\u3000é\ne\u0301\n\nA\nB\n") * 40
_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r'|\s+(?!\S)|\s+')


def _gpt2():
  return tokenizers.Tokenizer.train([_PROSE, _AWKWARD], 600).backend


def _llama3():
  backend = hf.Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.Sequence([
      pre_tokenizers.Split(hf.Regex(_LLAMA3_PATTERN), 'isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
  backend.decoder = decoders.ByteLevel()
  backend.train_from_iterator([_PROSE, _AWKWARD], trainers.BpeTrainer(
      vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
      special_tokens=['<|begin_of_text|>', '<|end_of_text|>']))
  backend.post_processor = processors.Sequence([
      processors.ByteLevel(trim_offsets=False),
      processors.TemplateProcessing(single='<|begin_of_text|> $A', special_tokens=[('<|begin_of_text|>', 0)])])
  return backend


def _llama2():
  backend = hf.Tokenizer(models.BPE(unk_token='<unk>'))
  backend.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
  # A pattern is needed to train in reasonable time; the tokenizer itself sees a text as one word.
  backend.pre_tokenizer = pre_tokenizers.Split(hf.Regex(r'▁|\n'), 'merged_with_next')
  backend.train_from_iterator([_PROSE, _AWKWARD], trainers.BpeTrainer(
      vocab_size=600, special_tokens=['<unk>', '<s>', '</s>'], show_progress=False))
  backend.pre_tokenizer = None
  return backend


def _bert():
  backend = hf.Tokenizer(models.WordPiece(unk_token='[UNK]'))
  backend.normalizer = normalizers.BertNormalizer()
  backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  backend.train_from_iterator([_PROSE], trainers.WordPieceTrainer(
      vocab_size=600, special_tokens=['[UNK]', '[CLS]', '[SEP]'], show_progress=False))
  backend.post_processor = processors.TemplateProcessing(
      single='[CLS] $A [SEP]', special_tokens=[('[CLS]', 1), ('[SEP]', 2)])
  return backend


class TokenizersTest(parameterized.TestCase):

  def test_every_text_round_trips(self):
    tokenizer = tokenizers.Tokenizer.train(['The text that it was trained on is ASCII. ' * 3], 270)
    characters = ''.join(map(chr, range(1, 0x3000))) + '🦎\U0010ffff'
    for text in (_AWKWARD, characters, '', ' ', '\n', ' leading and trailing '):
      self.assertEqual(tokenizer.decode(tokenizer.encode_text(text)), text)

  def test_documents_end_in_the_end_of_text_token_and_batches_do_not_show(self):
    tokenizer = tokenizers.Tokenizer(_gpt2())
    documents = [_AWKWARD, 'short', _PROSE, '\n']
    tokens = tokenizer.encode_documents(documents)
    self.assertEqual(tokens.dtype, np.uint16)
    self.assertEqual(tokenizer.decode(tokens), ''.join(document + '<|endoftext|>' for document in documents))
    with mock.patch.object(tokenizers, '_BATCH_CHARACTERS', 100):
      np.testing.assert_array_equal(tokens, tokenizer.encode_documents(iter(documents)))

  @parameterized.named_parameters(
      ('gpt2', _gpt2, 30), ('llama3', _llama3, 30), ('llama2', _llama2, 1), ('bert', _bert, 30))
  def test_cutting_a_text_does_not_change_its_tokens(self, make, at_least):
    """Holds for every family; the ones that put something before each text must not be cut at all."""
    backend = make()
    tokenizer = tokenizers.Tokenizer(backend)
    for text in (_PROSE, _AWKWARD, _AWKWARD.replace('\n', '\r\n')):
      with mock.patch.object(tokenizers, '_PIECE_CHARACTERS', 50):
        pieces = tokenizer._pieces(text)
        tokens = tokenizer.encode_text(text)
      self.assertEqual(''.join(pieces), text)
      np.testing.assert_array_equal(tokens, backend.encode(text).ids)
      if text is _PROSE:
        self.assertGreaterEqual(len(pieces), at_least)

  def test_training_is_deterministic_and_cutting_does_not_show(self):
    one = tokenizers.Tokenizer.train([_PROSE, _AWKWARD], 600)
    with mock.patch.object(tokenizers, '_PIECE_CHARACTERS', 50):
      two = tokenizers.Tokenizer.train(iter([_PROSE, _AWKWARD]), 600)
    self.assertEqual(one.fingerprint, two.fingerprint)
    self.assertEqual(one.vocab_size, 600)
    self.assertNotEqual(one.fingerprint, tokenizers.Tokenizer.train([_PROSE, _AWKWARD], 599).fingerprint)

  @parameterized.parameters('\n', '\r\n')
  def test_evaluation_turns_separator_lines_into_one_token(self, newline):
    tokenizer = tokenizers.Tokenizer(_llama3())
    text = f'one\n<|endoftext|>{newline}<|endoftext|>{newline}two <|endoftext|>\n<|endoftext|>'
    end, begin = tokenizer.end_of_text, tokenizer.backend.token_to_id('<|begin_of_text|>')
    inside = [tokenizer.backend.encode(part, add_special_tokens=False).ids for part in ('one\n', 'two <|endoftext|>\n')]
    expected = [begin, *inside[0], end, end, *inside[1], end]
    self.assertEqual(tokenizer.encode_text(text).tolist(), expected)

  def test_tokenizer_without_end_of_text_keeps_the_line(self):
    tokenizer = tokenizers.Tokenizer(_bert())
    self.assertIsNone(tokenizer.end_of_text)
    text = 'one\n<|endoftext|>\ntwo'
    self.assertEqual(tokenizer.encode_text(text).tolist(), tokenizer.backend.encode(text).ids)
    one, two = (tokenizer.backend.encode(word, add_special_tokens=False).ids for word in ('one', 'two'))
    self.assertEqual(tokenizer.encode_documents(['one', 'two']).tolist(), one + two)

  @parameterized.named_parameters(('gpt2', _gpt2, 0), ('llama3', _llama3, 1), ('bert', _bert, 1))
  def test_prompts_have_the_special_tokens_in_front_once_and_none_behind(self, make, count):
    tokenizer = tokenizers.Tokenizer(make())
    tokens = tokenizer.encode_prompt('one two')
    self.assertEqual(tokens[count:], tokenizer.encode_bare('one two'))
    self.assertEqual(tokens, tokenizer.encode_text('one two').tolist()[:len(tokens)])
    self.assertEqual((tokenizer.encode_prompt(''), tokenizer.start), (tokens[:count], tokens[:count]))
    spelled = ''.join(map(tokenizer.backend.id_to_token, tokens[:count])) + 'one two'
    self.assertEqual(tokenizer.encode_prompt(spelled), tokens)

  def test_save_and_load_agree_and_stored_truncation_is_ignored(self):
    directory = pathlib.Path(self.create_tempdir().full_path)
    tokenizer = tokenizers.Tokenizer(_gpt2())
    tokenizer.save(directory / 'new' / 'tokenizer.json')
    truncating = hf.Tokenizer.from_str(tokenizer.backend.to_str())
    truncating.enable_truncation(4)
    truncating.enable_padding(length=8)
    truncating.save(str(directory / 'truncating.json'))
    for path in (directory / 'new', directory / 'truncating.json'):
      loaded = tokenizers.Tokenizer.load(path)
      self.assertEqual(loaded.fingerprint, tokenizer.fingerprint)
      self.assertEqual(loaded.end_of_text, tokenizer.backend.token_to_id('<|endoftext|>'))
      np.testing.assert_array_equal(loaded.encode_documents([_AWKWARD]), tokenizer.encode_documents([_AWKWARD]))

  def test_end_of_text_is_found_by_its_usual_names(self):
    for name in ('<|endoftext|>', '</s>', '<|end_of_text|>', '<eos>'):
      backend = hf.Tokenizer(models.WordLevel({'a': 0, 'b': 1, name: 2}, unk_token='a'))
      self.assertEqual(tokenizers.Tokenizer(backend).end_of_text, 2)

  def test_large_vocabularies_need_wider_tokens(self):
    backend = hf.Tokenizer(models.WordLevel({'a': 0, 'b': 1 << 16}, unk_token='a'))
    tokenizer = tokenizers.Tokenizer(backend)
    self.assertEqual(tokenizer.vocab_size, (1 << 16) + 1)
    tokens = tokenizer.encode_documents(['b'])
    self.assertEqual((tokens.dtype, tokens.tolist()), (np.uint32, [1 << 16]))

  def test_vocabulary_sizes_that_cannot_be_had(self):
    with self.assertRaisesRegex(errors.UserError, 'vocabulary of 257 tokens is too small.* 257'):
      tokenizers.Tokenizer.train([_PROSE], 257)
    for documents in ([], [''], ['ab']):
      with self.assertRaisesRegex(errors.UserError, 'nothing to train a tokenizer on'):
        tokenizers.Tokenizer.train(documents, 300)
    with self.assertLogs(level='WARNING') as logs:
      tokenizer = tokenizers.Tokenizer.train(['abab ' * 10], 300)
    self.assertLess(tokenizer.vocab_size, 300)
    self.assertIn(f'only {tokenizer.vocab_size} of the 300 tokens', logs.output[0])

  def test_refuses_files_that_are_no_tokenizer(self):
    directory = pathlib.Path(self.create_tempdir().full_path)
    (directory / 'bad.json').write_text('{"model": 7}')
    (directory / 'binary.json').write_bytes(b'\xff\xfe')
    messages = {'bad.json': 'not a tokenizer.json', 'binary.json': 'byte 0', 'absent.json': 'No such file'}
    for name, message in messages.items():
      with self.assertRaisesRegex(errors.UserError, f'{name}: .*{message}') as caught:
        tokenizers.Tokenizer.load(directory / name)
      self.assertNotIn('\n', str(caught.exception))
    with self.assertRaisesRegex(errors.UserError, r'tokenizer\.json: .*No such file'):
      tokenizers.Tokenizer.load(directory)
    with self.assertRaisesRegex(errors.UserError, 'cannot be written'):
      tokenizers.Tokenizer(_gpt2()).save(directory / 'bad.json' / 'tokenizer.json')


if __name__ == '__main__':
  absltest.main()
