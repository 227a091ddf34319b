"""Safetensors files: what is written is read again; whatever is wrong with a file is one line, never another error."""

import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import ml_dtypes
import numpy as np

from jaxquant import errors
from jaxquant.interop import tensor_file

_ARRAYS = {
    'a': np.arange(6, dtype=np.float32).reshape(2, 3), 'b': np.array([1, -2], np.int8),
    'c': np.array([0.5, 3], ml_dtypes.bfloat16), 'scalar': np.array(7, np.int64), 'empty': np.zeros((0, 4), np.float16),
}
_ENTRY = {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]}
_DATA = bytes(8)


class TensorFileTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path) / 'model.safetensors'

  def _bytes(self, header, data=_DATA, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, 'little') + text + data

  def _assert_refused(self, content, *words):
    self.path.write_bytes(content)
    with self.assertRaises(errors.UserError) as caught:
      tensor_file.TensorFile(self.path)
    message = str(caught.exception)
    self.assertIn(str(self.path), message)
    self.assertLen(message.splitlines(), 1)
    for word in words:
      self.assertIn(word, message)

  def test_written_is_read(self):
    tensor_file.write(self.path, _ARRAYS, {'format': 'pt'})
    opened = tensor_file.TensorFile(self.path)
    self.assertEqual(opened.metadata, {'format': 'pt'})
    self.assertCountEqual(opened.tensors, _ARRAYS)
    for name, array in _ARRAYS.items():
      np.testing.assert_array_equal(opened.array(name), array)
      self.assertEqual(opened.array(name).dtype, array.dtype)
      self.assertEqual(opened.tensors[name].begin % array.dtype.itemsize, 0)
    with self.assertRaisesRegex(ValueError, 'read-only'):
      opened.array('a')[0, 0] = 1

  @parameterized.named_parameters(
      ('empty', b'', 'no header in a file of 0 bytes'),
      ('short', b'\x01\x00', 'no header'),
      ('long_header', (2**63).to_bytes(8, 'little') + b'{}', 'no header'),
      ('pickle', b'\x80\x02}q\x00.' + bytes(20), 'pickle', 'safetensors'),
      ('archive', b'PK\x03\x04' + bytes(20), 'pickle', 'save_pretrained'))
  def test_no_header(self, content, *words):
    self._assert_refused(content, *words)

  @parameterized.named_parameters(
      ('no_json', b'{"a":', 'no JSON'),
      ('no_utf8', b'{"\xff": 1}', 'no JSON'),
      ('deep', b'[' * 100_000, 'no JSON'),
      ('digits', b'{"a": ' + b'1' * 5000 + b'}', 'no JSON'),
      ('list', [], 'no JSON object'),
      ('no_entry', {'a': 3}, 'a is not described'),
      ('more', {'a': {**_ENTRY, 'x': 1}}, 'a is not described'),
      ('dtype', {'a': {**_ENTRY, 'dtype': 'F4'}}, "'F4'", 'BF16'),
      ('dtype_kind', {'a': {**_ENTRY, 'dtype': ['F32']}}, 'dtype'),
      ('axes', {'a': {**_ENTRY, 'shape': [1] * 70 + _ENTRY['shape']}}, 'the shape of a'),
      ('negative', {'a': {**_ENTRY, 'shape': [-2]}}, 'shape of a'),
      ('fraction', {'a': {**_ENTRY, 'shape': [2.0]}}, 'shape of a'),
      ('boolean', {'a': {**_ENTRY, 'shape': [True, 2]}}, 'shape of a'),
      ('huge', {'a': {**_ENTRY, 'shape': [2**60]}}, 'shape of a'),
      ('product', {'a': {**_ENTRY, 'shape': [2**40, 2**40]}}, 'bytes, not those from 0 to 8'),
      ('wrong_shape', {'a': {**_ENTRY, 'shape': [3]}}, 'takes 12 bytes'),
      ('offsets', {'a': {**_ENTRY, 'data_offsets': [0]}}, 'offsets of a'),
      ('backwards', {'a': {**_ENTRY, 'data_offsets': [8, 0]}}, 'from 8 to 0'),
      ('hole', {'a': {**_ENTRY, 'data_offsets': [4, 12]}}, 'a begins at byte 4', 'hole'),
      ('overlap', {'a': _ENTRY, 'b': _ENTRY}, 'begins at byte 0 of the data, where 8 is expected'),
      ('twice', b'{"a":%s,"a":%s}' % ((json.dumps(_ENTRY).encode(),) * 2), "names 'a' twice"),
      ('metadata', {'a': _ENTRY, '__metadata__': {'n': 1}}, 'metadata'))
  def test_wrong_header(self, header, *words):
    self._assert_refused(self._bytes(header), *words)

  def test_header_as_long_as_the_first_bytes_of_a_pickle(self):
    tensor_file.write(self.path, {}, {'note': 'x' * (0x0280 - 29)})
    self.assertEqual(self.path.read_bytes()[:2], b'\x80\x02')
    self.assertEmpty(tensor_file.TensorFile(self.path).tensors)

  @parameterized.parameters(0, 4, 7, 9, 100)
  def test_truncated_or_too_long(self, size):
    self._assert_refused(self._bytes({'a': _ENTRY}, bytes(size)), f'{size} are there', 'truncated')

  def test_a_missing_file_is_named(self):
    with self.assertRaisesRegex(errors.UserError, 'model.safetensors cannot be read: No such file'):
      tensor_file.TensorFile(self.path)

  def test_mutated_headers_are_read_as_written_or_refused(self):
    tensor_file.write(self.path, _ARRAYS)
    whole, rng = self.path.read_bytes(), np.random.default_rng(0)
    header = 8 + int.from_bytes(whole[:8], 'little')
    refused = 0
    for _ in range(400):
      content = bytearray(whole)
      for _ in range(rng.integers(1, 4)):
        content[rng.integers(header)] = rng.integers(256)
      self.path.write_bytes(content)
      try:
        opened = tensor_file.TensorFile(self.path)
        self.assertEqual(sum(tensor.nbytes for tensor in opened.tensors.values()), len(whole) - header)
        for name in opened.tensors:
          np.array(opened.array(name))
      except errors.UserError as error:
        self.assertLen(str(error).splitlines(), 1)
        refused += 1
    self.assertGreater(refused, 300)


if __name__ == '__main__':
  absltest.main()
