"""Slabs make of a file what the layout finds in the mapped tensor, value for value."""

import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import ml_dtypes
import numpy as np

from jaxquant import errors
from jaxquant.interop import names
from jaxquant.interop import slabs
from jaxquant.interop import tensor_file

_DTYPES = {'bfloat16': ml_dtypes.bfloat16, 'float16': np.float16, 'float32': np.float32, 'float64': np.float64}


class SlabsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path) / 'model.safetensors'

  def _assert_read(self, tensor, layout):
    # A tensor in front, so that this one does not begin where the file does.
    tensor_file.write(self.path, {'first': np.ones(7, np.float64), 'tensor': tensor})
    opened = tensor_file.TensorFile(self.path)
    got = slabs.read(opened, 'tensor', layout)
    want = np.asarray(layout.take(opened.array('tensor')), np.float32)
    self.assertEqual(got.dtype, np.float32)
    self.assertTrue(got.flags.c_contiguous)
    if got.size:
      self.assertEqual(got.ctypes.data % 64, 0)
    np.testing.assert_array_equal(got.view(np.uint32), np.ascontiguousarray(want).view(np.uint32))

  # More rows than a slab has and a part of one; more columns than are turned at a time, and an odd number of them.
  @parameterized.product(
      dtype=list(_DTYPES), shape=[(300, 1100), (128, 64), (5, 7), (1, 2), (12,), (0, 3)], transposed=[True, False])
  def test_values(self, dtype, shape, transposed):
    tensor = np.random.default_rng(0).normal(size=shape).astype(_DTYPES[dtype])
    self._assert_read(tensor, names.Layout(transposed))

  @parameterized.product(dtype=list(_DTYPES), rows=[3, 300])
  def test_rows_that_are_skipped(self, dtype, rows):
    self._assert_read((np.arange(rows * 9000) % 2048).reshape(rows, -1).astype(_DTYPES[dtype]), names.Layout(skipped=2))

  @parameterized.product(
      dtype=list(_DTYPES), fused=['heads', 'parts'], transposed=[True, False], part=[0, 1, 2], lead=[(), (70,)])
  def test_parts_of_fused_tensors(self, dtype, fused, transposed, part, lead):
    layout = names.Layout(transposed, fused, part, heads=4)
    shape = layout.shape((*lead, 96)) if lead else (288,)
    self._assert_read(np.random.default_rng(0).normal(size=shape).astype(_DTYPES[dtype]), layout)

  @parameterized.product(dtype=['bfloat16', 'float16'], transposed=[True, False])
  def test_every_value_of_16_bits(self, dtype, transposed):
    tensor = np.arange(2**16, dtype=np.uint16).reshape(256, 256).view(_DTYPES[dtype])
    tensor_file.write(self.path, {'tensor': tensor})
    got = slabs.read(tensor_file.TensorFile(self.path), 'tensor', names.Layout(transposed))
    want = (tensor.T if transposed else tensor).astype(np.float32)
    numbers = ~np.isnan(want)
    np.testing.assert_array_equal(got.view(np.uint32)[numbers], want.view(np.uint32)[numbers])
    self.assertTrue(np.isnan(got[~numbers]).all())

  @parameterized.parameters(True, False)
  def test_a_file_that_became_shorter(self, transposed):
    tensor_file.write(self.path, {'tensor': np.ones((200, 64), np.float32)})
    opened = tensor_file.TensorFile(self.path)
    with open(self.path, 'r+b') as file:
      file.truncate(10_000)
    with self.assertRaisesRegex(errors.UserError, f'{self.path} cannot be read: it has become shorter'):
      slabs.read(opened, 'tensor', names.Layout(transposed))

  def test_a_file_that_is_gone(self):
    tensor_file.write(self.path, {'tensor': np.ones((2, 2), np.float32)})
    opened = tensor_file.TensorFile(self.path)
    self.path.unlink()
    with self.assertRaisesRegex(errors.UserError, f'{self.path} cannot be read: No such file'):
      slabs.read(opened, 'tensor', names.Layout())


if __name__ == '__main__':
  absltest.main()
