"""An export is whole or not there, and its manifest says what is in it."""

import json
import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from jaxquant import errors
from jaxquant.interop import manifest
from jaxquant.interop import source
from jaxquant.interop import tensor_file
from jaxquant.interop import writing
from jaxquant.numerics import trees
from tests import exporting


class WritingTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.opened, self.params = exporting.quantized(self.folder / 'model', activations='full_int8')
    self.target = self.folder / 'to' / 'exported'

  def _write(self, kind='compressed-tensors', **options):
    return writing.write(self.target, self.params, self.opened.directory, kind, **options)

  def test_files_that_go_along(self):
    (self.folder / 'model' / 'generation_config.json').write_text('{"eos_token_id": 1}')
    (self.folder / 'model' / 'modeling.py').write_text('raise SystemExit')
    self._write()
    self.assertCountEqual([path.name for path in self.target.iterdir()], [
        'config.json', 'generation_config.json', 'model.safetensors', 'tokenizer.json', manifest.NAME])
    for name in ('generation_config.json', 'tokenizer.json'):
      self.assertEqual((self.target / name).read_bytes(), (self.folder / 'model' / name).read_bytes())
    config = json.loads((self.target / 'config.json').read_text())
    self.assertEqual(config.pop('quantization_config')['quant_method'], 'compressed-tensors')
    self.assertEqual(config, self.opened.directory.config)
    self.assertEqual([path.name for path in self.target.parent.iterdir()], ['exported'])

  @parameterized.parameters('gptq', 'gptq_v2')
  def test_older_loaders_of_gptq_find_their_file(self, kind):
    opened, params = exporting.quantized(self.folder / 'weights')
    writing.write(self.target, params, opened.directory, kind)
    older = json.loads((self.target / 'quantize_config.json').read_text())
    self.assertEqual(older, json.loads((self.target / 'config.json').read_text())['quantization_config'])
    self.assertEqual(older['checkpoint_format'], kind)

  def test_dtype_of_what_stays_floating(self):
    self._write(dtype='bfloat16')
    tensors = tensor_file.TensorFile(self.target / 'model.safetensors').tensors
    self.assertEqual(tensors['model.norm.weight'].dtype.name, 'bfloat16')
    self.assertEqual(tensors['model.layers.0.mlp.up_proj.weight_scale'].dtype, np.float32)
    self.assertEqual(json.loads((self.target / 'config.json').read_text())['torch_dtype'], 'bfloat16')

  def test_a_value_that_leaves_the_dtype_is_refused(self):
    self.params = trees.put(self.params, 'final_norm/scale', np.full(32, 1e5, np.float32))
    with self.assertRaisesRegex(errors.UserError, r'model\.norm\.weight holds 1e\+05, which leaves float16'):
      self._write(dtype='float16')
    self.assertEmpty(list(self.target.parent.iterdir()))
    self._write(dtype='bfloat16')

  def test_several_files_hold_what_one_does(self):
    self._write()
    one = source.DirectorySource(self.target)
    several = source.DirectorySource(writing.write(
        self.folder / 'several', self.params, self.opened.directory, 'compressed-tensors', shard_bytes=10_000))
    self.assertGreater(len({file.path for file in several.directory.files.values()}), 3)
    self.assertCountEqual(one.directory.files, several.directory.files)
    for name in one.directory.files:
      np.testing.assert_array_equal(one.directory.array(name), several.directory.array(name))
    index = json.loads((self.folder / 'several' / 'model.safetensors.index.json').read_text())
    total = sum(one.directory.tensor(name).nbytes for name in one.directory.files)
    self.assertEqual(index['metadata']['total_size'], total)

  def test_existing_directory_is_left_alone(self):
    self.target.mkdir(parents=True)
    with self.assertRaisesRegex(errors.UserError, 'exists already'):
      self._write()
    self.assertEmpty(list(self.target.iterdir()))

  @parameterized.parameters('tensor_file.write', 'manifest.write', 'os.rename')
  def test_failure_leaves_nothing(self, where):
    with mock.patch(f'jaxquant.interop.writing.{where}', side_effect=OSError(28, 'No space left on device')):
      with self.assertRaisesRegex(errors.UserError, f'cannot write {self.target}: No space left on device'):
        self._write()
    self.assertEmpty(list(self.target.parent.iterdir()))

  def test_what_is_refused_makes_no_directory(self):
    with self.assertRaises(errors.UserError):
      self._write('gptq')
    self.assertFalse(self.target.parent.exists())

  def test_while_it_is_written_it_has_another_name_and_no_manifest(self):
    seen = []
    write = manifest.write

    def look(partial, *arguments):
      seen.append((partial.name, self.target.exists(), (partial / manifest.NAME).exists()))
      write(partial, *arguments)

    with mock.patch('jaxquant.interop.writing.manifest.write', look):
      self._write()
    (name, there, described), = seen
    self.assertStartsWith(name, '.exported.partial-')
    self.assertFalse(there or described)


class ManifestTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    folder = pathlib.Path(self.create_tempdir().full_path)
    opened, self.params = exporting.quantized(folder / 'model', activations='full_int8')
    self.folder = writing.write(
        folder / 'exported', self.params, opened.directory, 'compressed-tensors', provenance={'source': 'there'},
        decisions={'layers/0/mlp/up': {'relative_error': 0.5}})

  def test_says_what_everything_is(self):
    content = manifest.verify(self.folder)
    self.assertEqual(content['provenance'], {'format': 'compressed-tensors', 'source': 'there'})
    self.assertEqual(content['decisions'], {'layers/0/mlp/up': {'relative_error': 0.5}})
    self.assertCountEqual(content['files'], ['config.json', 'model.safetensors', 'tokenizer.json'])
    parameters = content['parameters']
    self.assertEqual(parameters['layers/0/mlp/up/kernel'], {
        'format': 'uint4', 'shape': [32, 64], 'axis': -2, 'group_size': 16})
    self.assertEqual(parameters['final_norm/scale'], {'dtype': 'float32', 'shape': [32]})
    self.assertEqual(parameters['layers/1/mlp/input/quantizer']['quantizer']['format'], {'__format__': 'full_int8'})

  @parameterized.named_parameters(
      ('changed', lambda folder: (folder / 'config.json').write_text('{}'), 'config.json is not what was written'),
      ('bit', lambda folder: (folder / 'model.safetensors').write_bytes(
          (folder / 'model.safetensors').read_bytes()[:-1] + b'\x7f'), 'model.safetensors is not what was written'),
      ('lost', lambda folder: (folder / 'tokenizer.json').unlink(), 'lacks tokenizer.json'),
      ('new', lambda folder: (folder / 'new').write_text(''), 'new was not written with the rest'),
      ('no_manifest', lambda folder: (folder / manifest.NAME).unlink(), 'no readable'),
      ('half_a_manifest', lambda folder: (folder / manifest.NAME).write_text('{"files": {'), 'no readable'))
  def test_verification_sees(self, damage, message):
    damage(self.folder)
    with self.assertRaisesRegex(errors.CheckpointError, message):
      manifest.verify(self.folder)
    if message.startswith(('model', 'new')):  # which sizes do not show
      manifest.verify(self.folder, contents=False)
    else:
      with self.assertRaisesRegex(errors.CheckpointError, message):
        manifest.verify(self.folder, contents=False)


if __name__ == '__main__':
  absltest.main()
