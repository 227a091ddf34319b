"""Documents come out of every kind of file as they went in, and every mistake in a file is named in one line."""

import gzip
import json
import lzma
import pathlib
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import pyarrow
from pyarrow import parquet

from jaxquant import errors
from jaxquant.data import text

_DOCUMENTS = ['Grüße aus Zürich.\n\nZwei Absätze.\n', '  日本語 and 🦎🧪\r\n', 'no newline at the end']


class TextTest(parameterized.TestCase):

  def _file(self, name, content):
    path = pathlib.Path(self.create_tempdir().full_path) / name
    path.write_bytes(content)
    return path

  def _assert_refused(self, path, message, function=text.read_documents):
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      list(function(path) or ())
    self.assertNotIn('\n', str(caught.exception))
    self.assertIn(path.name, str(caught.exception))

  @parameterized.parameters(('a.txt', bytes), ('a.txt.gz', gzip.compress), ('a.xz', lzma.compress))
  def test_plain_documents_are_what_stands_between_separator_lines(self, name, compress):
    content = _DOCUMENTS[0] + '<|endoftext|>\n' + _DOCUMENTS[1] + '<|endoftext|>\r\n' + _DOCUMENTS[2]
    path = self._file(name, compress(content.encode()))
    self.assertEqual(list(text.read_documents(path)), _DOCUMENTS)

  @parameterized.parameters(('a.jsonl', bytes), ('a.json.gz', gzip.compress), ('a.jsonl.xz', lzma.compress))
  def test_json_lines_give_one_field(self, name, compress):
    lines = [json.dumps({'id': 1, 'body': document}) for document in _DOCUMENTS]
    path = self._file(name, compress('\n\n'.join(lines).encode()))
    self.assertEqual(list(text.read_documents(path, field='body')), _DOCUMENTS)

  def test_parquet_gives_one_column(self):
    path = self._file('a.parquet', b'')
    parquet.write_table(pyarrow.table({'body': _DOCUMENTS, 'id': [1, 2, 3]}), path)
    self.assertEqual(list(text.read_documents(path, field='body')), _DOCUMENTS)
    text.check_readable(path)

  def test_file_without_separator_is_one_document_and_several_files_follow_each_other(self):
    first = self._file('first', b'a <|endoftext|> inside a line\n <|endoftext|>\nb')
    second = self._file('second', b'\n \n<|endoftext|>\nc\n<|endoftext|>\n<|endoftext|>\n')
    self.assertEqual(
        list(text.read_documents([str(first), second])), ['a <|endoftext|> inside a line\n <|endoftext|>\nb', 'c\n'])

  def test_read_text_of_a_plain_file_is_its_text(self):
    content = 'one\n\n<|endoftext|>\ntwö\nlines\n<|endoftext|>\n three'
    self.assertEqual(text.read_text(self._file('a.txt', content.encode())), content)

  def test_read_text_separates_documents_of_other_files_by_lines(self):
    path = self._file('a.jsonl', b'{"text": "one"}\n{"text": "two\\n"}\n{"text": "three"}\n')
    self.assertEqual(text.read_text(path), 'one\n<|endoftext|>\ntwo\n<|endoftext|>\nthree')

  def test_refuses_missing_files_and_directories(self):
    directory = pathlib.Path(self.create_tempdir().full_path)
    for function in (text.read_documents, text.check_readable):
      self._assert_refused(directory / 'absent.txt', 'No such file', function)
      self._assert_refused(directory, 'Is a directory', function)
    with self.assertRaisesRegex(errors.UserError, 'No text file was named'):
      text.check_readable([])

  def test_refuses_empty_text(self):
    self._assert_refused(self._file('a.txt', b''), 'holds no text')
    self._assert_refused(self._file('b.txt', b' \n<|endoftext|>\n\n'), 'holds no text')
    self._assert_refused(self._file('c.jsonl', b'{"text": ""}\n'), 'holds no text')
    self._assert_refused(self._file('d.txt.gz', gzip.compress(b'')), 'holds no text', text.check_readable)

  def test_names_the_byte_that_is_not_utf8(self):
    path = self._file('a.txt', b'good\n<|endoftext|>\nb\xe4d\n')
    self._assert_refused(path, r'a\.txt: byte 20 is not UTF-8')
    self._assert_refused(path, r'a\.txt: byte 20 is not UTF-8', text.check_readable)
    self._assert_refused(self._file('b.jsonl', b'{"text": "a"}\n{"text": "\xff"}'), r'b\.jsonl:2: byte 24 is not UTF-8')

  def test_check_may_cut_a_character_in_two(self):
    text.check_readable(self._file('a.txt', b'a' + 'ä'.encode() * (1 << 16)))

  @parameterized.parameters(
      ('{"text": "a"', 'not valid JSON'), ('["a"]', 'not a JSON object'), ('{"body": "a"}', "no field 'text'.*body"),
      ('{"text": ' + '9' * 9999 + '}', 'cannot be read .*digits'), ('[' * 99_999, 'cannot be read .*recursion'),
      ('{"text": 7}', 'is int, not a string'), ('{"text": "\\ud83e"}', 'half a surrogate pair'))
  def test_names_the_line_of_a_bad_record(self, line, message):
    content = '{"text": "a"}\n\n' + line
    self._assert_refused(self._file('a.jsonl', content.encode()), r'a\.jsonl:3: .*' + message)

  def test_refuses_damaged_compressed_files(self):
    for name, compressed in (('a.xz', lzma.compress(b'text' * 1000)), ('a.gz', gzip.compress(b'text' * 1000))):
      self._assert_refused(self._file(name, compressed[:-9]), 'compressed file is damaged')
      self._assert_refused(self._file(name, b'text'), 'compressed file is damaged', text.check_readable)

  def test_refuses_unfit_parquet_files(self):
    path = self._file('a.parquet', b'PAR1 and nothing of the kind')
    self._assert_refused(path, 'not a readable Parquet file')
    self._assert_refused(path, 'not a readable Parquet file', text.check_readable)
    parquet.write_table(pyarrow.table({'body': ['a', None]}), path)
    self._assert_refused(path, "no column 'text'; the columns are body")
    with self.assertRaisesRegex(errors.UserError, "row 2: the field 'body' is NoneType"):
      list(text.read_documents(path, field='body'))

  def test_parquet_without_pyarrow_names_the_extra(self):
    with mock.patch.dict(sys.modules, {'pyarrow': None}):
      self._assert_refused(self._file('a.parquet', b'PAR1'), r'needs pyarrow.*jaxquant\[parquet\]', text.check_readable)


if __name__ == '__main__':
  absltest.main()
