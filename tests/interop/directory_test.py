"""Model directories that are wrong or hostile: one line that names the culprit, and no file outside is read."""

import json
import pathlib
import pickle

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.interop import source
from jaxquant.interop import tensor_file
from tests import model_directories

_INDEX = 'model.safetensors.index.json'


class DirectoryTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path) / 'model'

  def _assert_refused(self, *words):
    with self.assertRaises(errors.UserError) as caught:
      source.DirectorySource(self.folder)
    message = str(caught.exception)
    self.assertLen(message.splitlines(), 1)
    self.assertEqual(caught.exception.exit_code, 2)
    for word in words:
      self.assertIn(word, message)

  def _change(self, function, file='model.safetensors'):
    """Rewrites a file with `function` applied to {name: array}."""
    opened = tensor_file.TensorFile(self.folder / file)
    arrays = {name: np.array(opened.array(name)) for name in opened.tensors}
    tensor_file.write(self.folder / file, function(arrays) or arrays)

  def _change_index(self, **entries):
    path = self.folder / _INDEX
    index = json.loads(path.read_text())
    index['weight_map'].update(entries)
    path.write_text(json.dumps(index))

  def test_nothing_there(self):
    self._assert_refused(str(self.folder), 'not a directory')
    self.folder.mkdir()
    self._assert_refused('has no config.json')

  @parameterized.parameters(('', 'cannot be read'), ('[]', 'no JSON object'), ('{"model_type"', 'cannot be read'),
                            ('[' * 100_000, 'cannot be read'))
  def test_config_that_is_none(self, text, problem):
    model_directories.write(self.folder)
    (self.folder / 'config.json').write_text(text)
    self._assert_refused('config.json', problem)

  def test_only_pickles(self):
    model_directories.write(self.folder)
    (self.folder / 'model.safetensors').unlink()
    self._assert_refused('has no model.safetensors')
    (self.folder / 'pytorch_model.bin').write_bytes(pickle.dumps({}))
    self._assert_refused('pytorch_model.bin', 'pickles', 'save_pretrained')

  def test_pickle_by_another_name_is_not_executed(self):
    model_directories.write(self.folder)
    (self.folder / 'model.safetensors').write_bytes(pickle.dumps(_Payload()))
    self._assert_refused('model.safetensors is a pickle', 'convert it')
    self.assertFalse(_Payload.ran)

  @parameterized.parameters(('x' * 5000, 'cannot be read'), ('x\0y', 'has no x'), ('\ud800', 'has no'))
  def test_index_with_a_name_that_no_file_can_have(self, name, problem):
    model_directories.write(self.folder, shards=2)
    self._change_index(**{'model.norm.weight': name})
    self._assert_refused(problem)

  @parameterized.parameters('../outside.safetensors', '/etc/passwd', 'sub/model.safetensors', '..', '', 'a\\b')
  def test_index_that_points_elsewhere(self, name):
    model_directories.write(self.folder, shards=2)
    tensor_file.write(self.folder.parent / 'outside.safetensors', {'model.norm.weight': np.zeros(32, np.float32)})
    self._change_index(**{'model.norm.weight': name})
    self._assert_refused(repr(name), 'not the name of a file in it')

  @parameterized.parameters('config.json', 'model.safetensors')
  def test_link_that_leaves(self, name):
    model_directories.write(self.folder)
    outside = self.folder.parent / name
    (self.folder / name).rename(outside)
    (self.folder / name).symlink_to(outside)
    self._assert_refused(f'{self.folder / name} is a link to a file outside')

  def test_link_within_is_followed(self):
    model_directories.write(self.folder)
    (self.folder / 'model.safetensors').rename(self.folder / 'weights.safetensors')
    (self.folder / 'model.safetensors').symlink_to('weights.safetensors')
    self.assertEqual(
        jax.tree.map(jnp.shape, source.DirectorySource(self.folder).whole()),
        jax.tree.map(jnp.shape, source.DirectorySource(self.folder).abstract()))

  @parameterized.named_parameters(
      ('missing_file', {'model.norm.weight': 'model-00003-of-00002.safetensors'}, ['has no model-00003-of-00002']),
      ('wrong_file', {'model.norm.weight': 'model-00001-of-00002.safetensors',
                      'lm_head.weight': 'model-00002-of-00002.safetensors'}, ['which lacks it']),
      ('unknown_tensor', {'nothing': 'model-00001-of-00002.safetensors'}, ['nothing', 'which lacks it']),
      ('no_name', {'model.norm.weight': 3}, ['weight_map']))
  def test_index_that_is_wrong(self, entries, words):
    model_directories.write(self.folder, shards=2)
    self._change_index(**entries)
    self._assert_refused(*words)

  def test_tensor_in_two_files(self):
    model_directories.write(self.folder, shards=2)
    twice = {'lm_head.weight': np.zeros((300, 32), np.float32)}
    for file in sorted(self.folder.glob('*.safetensors')):
      self._change(lambda arrays: arrays | twice, file.name)
    self._assert_refused('holds lm_head.weight', 'says is in')

  def test_tensor_that_the_index_leaves_out(self):
    model_directories.write(self.folder, shards=2)
    self._change(lambda arrays: arrays | {'extra': np.zeros(2, np.float32)}, 'model-00001-of-00002.safetensors')
    self._assert_refused('holds extra', 'does not name')

  def test_truncated_file(self):
    model_directories.write(self.folder)
    path = self.folder / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:-1])
    self._assert_refused('truncated')

  @parameterized.named_parameters(
      ('missing', lambda arrays: arrays.pop('model.layers.1.mlp.up_proj.weight') is None, ['lacks', 'layers.1.mlp.up']),
      ('extra', lambda arrays: arrays | {'model.layers.2.mlp.up_proj.weight': np.zeros((2, 2), np.float32)}, [
          'no place for', 'layers.2.mlp.up']),
      ('shape', lambda arrays: arrays | {'model.norm.weight': np.zeros(31, np.float32)}, [
          'model.norm.weight has shape (31,) instead of (32,)']),
      ('transposed', lambda arrays: arrays | {'model.layers.0.mlp.up_proj.weight': np.zeros((32, 64), np.float32)}, [
          'layers.0.mlp.up_proj.weight has shape (32, 64) instead of (64, 32)']),
      ('integers', lambda arrays: arrays | {'model.norm.weight': np.zeros(32, np.int32)}, ['int32', 'floating']))
  def test_tensors_that_do_not_fit(self, change, words):
    model_directories.write(self.folder)
    self._change(change)
    self._assert_refused(*words)

  def _mutations(self, name, count):
    """Opens the directory with bytes of a file mutated: (what was read each time that it was, how often it was not)."""
    path, rng, read = self.folder / name, np.random.default_rng(0), []
    whole = path.read_bytes()
    for _ in range(count):
      content = bytearray(whole)
      for _ in range(rng.integers(1, 4)):
        content[rng.integers(len(whole))] = rng.integers(256)
      path.write_bytes(content)
      try:
        read.append(source.DirectorySource(self.folder))
      except errors.UserError as error:
        self.assertLen(str(error).splitlines(), 1)
    return read, count - len(read)

  def test_mutated_indices_are_read_as_written_or_refused(self):
    model_directories.write(self.folder, shards=2)
    places = lambda opened: {name: file.path.name for name, file in opened.directory.files.items()}
    written = places(source.DirectorySource(self.folder))
    read, refused = self._mutations(_INDEX, 100)
    self.assertGreater(refused, 60)
    for opened in read:
      self.assertEqual(places(opened), written)

  def test_mutated_configurations_are_of_a_model_of_the_sizes_of_the_tensors_or_refused(self):
    model_directories.write(self.folder, 'qwen3')
    sizes = lambda opened: [getattr(opened.config, name) for name in (
        'vocabulary', 'width', 'layers', 'feed_forward', 'tied', 'norm', 'head_norm')]
    written = sizes(source.DirectorySource(self.folder))
    read, refused = self._mutations('config.json', 100)
    self.assertGreater(refused, 40)
    for opened in read:
      self.assertEqual(sizes(opened), written)

  def test_mutated_tokenizers_name_a_mask_of_the_vocabulary_or_are_refused(self):
    model_directories.write(self.folder, 'bert')
    path = self.folder / 'tokenizer.json'
    path.write_text(json.dumps({'added_tokens': json.loads(path.read_text())['added_tokens']}))
    read, refused = self._mutations('tokenizer.json', 100)
    self.assertGreater(refused, 20)
    self.assertNotEmpty(read)
    for opened in read:
      self.assertBetween(opened.config.mask_token, 0, 299)


class _Payload:
  """What a pickle would run."""

  ran = False

  def __reduce__(self):
    return _run, ()


def _run():
  _Payload.ran = True


if __name__ == '__main__':
  absltest.main()
