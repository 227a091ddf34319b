"""A token file holds what its tokenizer says, is reused while its sources stay, and made anew when they change."""

import json
import os
import pathlib
from unittest import mock

from absl.testing import absltest
import numpy as np

from jaxquant import errors
from jaxquant.data import text
from jaxquant.data import token_file
from jaxquant.data import tokenizers

_DOCUMENTS = ['Grüße, Grüße aus Zürich.\n' * 20, '🦎🧪🦎🧪\n', 'the end, the very end of the text']


class TokenFileTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(self.create_tempdir().full_path)
    self.tokenizer = tokenizers.Tokenizer.train(_DOCUMENTS, 270)
    self.source = self.directory / 'source.txt'
    self.source.write_text(text.join_documents(_DOCUMENTS), encoding='utf-8')
    self.path = self.directory / 'cache' / 'corpus.npy'

  def _prepare(self, tokenizer=None, paths=None):
    """Returns the token file and whether it was written anew."""
    with mock.patch.object(token_file, '_write', wraps=token_file._write) as write:
      made = token_file.prepare_files(paths or self.source, tokenizer or self.tokenizer, self.path)
    self.assertCountEqual(os.listdir(self.path.parent), ['corpus.npy', 'corpus.json'])
    return made, write.called

  def test_holds_the_tokens_and_counts_of_the_text(self):
    made, _ = self._prepare()
    in_file = list(text.read_documents(self.source))
    expected = self.tokenizer.encode_documents(in_file)
    np.testing.assert_array_equal(made.tokens, expected)
    self.assertEqual(made.tokens.dtype, np.uint16)
    self.assertIsInstance(made.tokens, np.memmap)
    self.assertEqual(made.num_documents, 3)
    self.assertEqual(made.num_bytes, sum(len(document.encode()) for document in in_file))
    np.testing.assert_array_equal(np.load(self.path), expected)

  def test_tokens_written_in_many_batches_are_the_same(self):
    with mock.patch.object(tokenizers, '_BATCH_CHARACTERS', 10):
      made, _ = self._prepare()
    np.testing.assert_array_equal(made.tokens, self.tokenizer.encode_documents(text.read_documents(self.source)))

  def test_is_reused_until_text_or_tokenizer_change(self):
    first, written = self._prepare()
    self.assertTrue(written)
    os.utime(self.source, (1, 1))
    again, written = self._prepare()
    self.assertFalse(written)
    self.assertEqual(again.fingerprint, first.fingerprint)
    _, written = self._prepare(tokenizer=tokenizers.Tokenizer.train(_DOCUMENTS, 265))
    self.assertTrue(written)
    _, written = self._prepare()
    self.assertTrue(written)
    self.source.write_bytes(self.source.read_bytes().replace(b'very', b'VERY'))
    changed, written = self._prepare()
    self.assertTrue(written)
    self.assertIn('VERY', self.tokenizer.decode(changed.tokens))
    _, written = self._prepare(paths=[self.source, self.source])
    self.assertTrue(written)

  def test_what_is_not_to_be_replaced_stays(self):
    prepare = lambda: token_file.prepare_files(self.source, self.tokenizer, self.path, replace=False)
    first = prepare()
    self.assertEqual(prepare().fingerprint, first.fingerprint)
    before = self.path.read_bytes()
    self.source.write_bytes(self.source.read_bytes().replace(b'very', b'VERY'))
    with self.assertRaises(token_file.Changed):
      prepare()
    self.assertEqual(self.path.read_bytes(), before)

  def test_documents_in_memory_are_reused_until_they_change(self):
    first = token_file.prepare_documents(_DOCUMENTS, self.tokenizer, self.path)
    np.testing.assert_array_equal(first.tokens, self.tokenizer.encode_documents(_DOCUMENTS))
    with mock.patch.object(token_file, '_write', side_effect=AssertionError):
      token_file.prepare_documents(_DOCUMENTS, self.tokenizer, self.path)
    # The same characters, divided otherwise, are another corpus.
    divided = [_DOCUMENTS[0][:5], _DOCUMENTS[0][5:], *_DOCUMENTS[1:]]
    self.assertEqual(token_file.prepare_documents(divided, self.tokenizer, self.path).num_documents, 4)

  def test_is_made_anew_after_damage(self):
    first, _ = self._prepare()
    expected = np.array(first.tokens)
    content, description = self.path.read_bytes(), self.path.with_suffix('.json')
    for damage in (
        lambda: self.path.write_bytes(content[:-2]), lambda: self.path.write_bytes(b''), self.path.unlink,
        description.unlink, lambda: description.write_text('{"num'), lambda: description.write_text('{}'),
        lambda: np.save(self.path, expected[:-1]), lambda: np.save(self.path, expected.astype(np.int64))):
      damage()
      with self.assertRaisesRegex(errors.UserError, 'token file') as caught:
        token_file.load(self.path)
      self.assertNotIn('\n', str(caught.exception))
      made, written = self._prepare()
      self.assertTrue(written)
      np.testing.assert_array_equal(made.tokens, expected)

  def test_failure_leaves_the_old_file_and_no_temporary_one(self):
    made, _ = self._prepare()
    old = np.array(made.tokens)
    bad = self.directory / 'bad.jsonl'
    bad.write_text('{"text": "good"}\n{"text": 3}\n')
    with self.assertRaisesRegex(errors.UserError, r'bad\.jsonl:2: '):
      token_file.prepare_files([self.source, bad], self.tokenizer, self.path)
    self.assertCountEqual(os.listdir(self.path.parent), ['corpus.npy', 'corpus.json'])
    np.testing.assert_array_equal(token_file.load(self.path).tokens, old)

  def test_refuses_unfit_paths(self):
    with self.assertRaisesRegex(errors.UserError, 'ends in .npy'):
      token_file.prepare_files(self.source, self.tokenizer, self.directory / 'corpus.bin')
    with self.assertRaisesRegex(errors.UserError, 'cannot be written'):
      token_file.prepare_files(self.source, self.tokenizer, self.source / 'corpus.npy')
    with self.assertRaisesRegex(errors.UserError, 'absent.txt: .*No such file'):
      token_file.prepare_files([self.source, self.directory / 'absent.txt'], self.tokenizer, self.path)
    with self.assertRaisesRegex(errors.UserError, r'corpus\.json: .*No such file'):
      token_file.load(self.path)

  def test_description_is_plain_json(self):
    made, _ = self._prepare()
    description = json.loads(self.path.with_suffix('.json').read_text())
    self.assertEqual(description, {
        'num_tokens': len(made.tokens), 'num_documents': 3, 'num_bytes': made.num_bytes, 'dtype': 'uint16',
        'fingerprint': made.fingerprint})


if __name__ == '__main__':
  absltest.main()
