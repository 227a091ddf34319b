"""A directory as a tree: every array where it belongs, in blocks or whole, on one device or over several."""

import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from jaxquant import errors
from jaxquant.calibration import driver
from jaxquant.calibration import stores
from jaxquant.interop import names
from jaxquant.interop import source
from jaxquant.interop import tensor_file
from jaxquant.layers import sharding
from jaxquant.models import staging
from jaxquant.models import validate
from jaxquant.numerics import trees
from jaxquant.transforms import recipes
from tests import model_directories


class SourceTest(parameterized.TestCase):

  def _folder(self, family='llama', **options):
    return model_directories.write(pathlib.Path(self.create_tempdir().full_path), family, **options)

  @parameterized.product(family=list(model_directories.CONFIGS), shards=[1, 3])
  def test_blocks_and_whole_tree_are_those_that_were_written(self, family, shards):
    opened = source.DirectorySource(self._folder(family, shards=shards))
    self.assertIsInstance(opened, stores.Source)
    want = model_directories.params(model_directories.CONFIGS[family])
    whole = opened.whole()
    validate.validate(whole, opened.config)
    jax.tree.map(np.testing.assert_array_equal, whole, want)
    self.assertEqual(jax.tree.map(np.shape, opened.abstract()), jax.tree.map(np.shape, whole))
    jax.tree.map(np.testing.assert_array_equal, opened.load('layers/1'), want['layers']['1'])
    self.assertNotIn('layers', opened.load(''))
    changed = jax.tree.map(lambda x: x + 1, opened.load('layers/0'))
    assembled = opened.assemble({'layers/0': changed, '': opened.load('')})
    jax.tree.map(np.testing.assert_array_equal, assembled['layers'], {'0': changed, '1': want['layers']['1']})

  def test_older_names_of_gains_and_biases(self):
    folder = self._folder('bert')
    opened = tensor_file.TensorFile(folder / 'model.safetensors')
    rename = lambda name: name.replace('Norm.weight', 'Norm.gamma').replace('Norm.bias', 'Norm.beta')
    arrays = {rename(name): np.array(opened.array(name)) for name in opened.tensors}
    self.assertIn('bert.embeddings.LayerNorm.beta', arrays)
    tensor_file.write(folder / 'model.safetensors', arrays)
    want = model_directories.params(model_directories.CONFIGS['bert'])
    jax.tree.map(np.testing.assert_array_equal, source.DirectorySource(folder).whole(), want)

  def test_arrays_lie_as_they_are_asked_to(self):
    mesh = sharding.data_mesh()
    made = source.DirectorySource(
        self._folder(), lambda shape: sharding.parameter_sharding(mesh, shape, fully=True)).load('layers/0')
    for path, leaf in trees.arrays(made).items():
      self.assertEqual(leaf.sharding, sharding.parameter_sharding(mesh, leaf.shape, fully=True), path)

  def test_driver_makes_of_blocks_what_it_makes_of_the_whole_tree(self):
    opened, held = source.DirectorySource(self._folder()), []
    load = opened.load
    opened.load = lambda path: held.append(path) or load(path)
    recipe = recipes.Recipe(activation=None)
    steps = recipe.steps(staging.model_sites(opened.config))
    run = lambda params: driver.run(params, staging.staged(opened.config), steps, []).params
    streamed = run(opened)
    self.assertEqual(held, ['', 'layers/0', 'layers/1', ''])
    jax.tree.map(np.testing.assert_array_equal, streamed, run(opened.whole()))

  def test_fingerprint_is_that_of_the_contents(self):
    first, second, other = self._folder(), self._folder(), self._folder(rope_theta=7.0)
    marks = [source.DirectorySource(folder).directory.fingerprint() for folder in (first, second, other)]
    self.assertEqual(marks[0], marks[1])
    self.assertNotEqual(marks[0], marks[2])
    content = bytearray((second / 'model.safetensors').read_bytes())
    content[-1] ^= 1
    (second / 'model.safetensors').write_bytes(content)
    self.assertNotEqual(source.DirectorySource(second).directory.fingerprint(), marks[0])

  def test_the_mask_of_an_encoder_is_that_of_its_tokenizer(self):
    self.assertEqual(source.DirectorySource(self._folder('bert')).config.mask_token, 2)

  def _with_added_tokens(self, added):
    folder = self._folder('bert')
    content = json.loads((folder / 'tokenizer.json').read_text())
    (folder / 'tokenizer.json').write_text(json.dumps(content | {'added_tokens': added}))
    return folder

  def test_a_mask_that_has_no_name_is_known_to_be_none(self):
    named, unnamed = (source.DirectorySource(folder) for folder in (
        self._folder('bert'), self._with_added_tokens([{'id': 0, 'content': '<s>'}])))
    self.assertTrue(named.masks)
    self.assertFalse(unnamed.masks)

  @parameterized.parameters([(added,) for added in (
      5, 'x', {'id': 1}, [1], [[1]], [None], [{'content': '[MASK]'}], [{'content': '[MASK]', 'id': 'x'}],
      [{'content': '[MASK]', 'id': True}], [{'content': '[MASK]', 'id': -1}], [{'content': '[MASK]', 'id': 300}])])
  def test_added_tokens_that_are_none_are_refused(self, added):
    with self.assertRaisesRegex(errors.UserError, 'tokenizer.json: .*added_tokens'):
      source.DirectorySource(self._with_added_tokens(added))

  @parameterized.named_parameters(
      ('embedding', 'qwen2', 'lm_head.weight', 'model.embed_tokens.weight'),
      ('opt', 'opt, post-norm', 'lm_head.weight', 'model.decoder.embed_tokens.weight'),
      ('kernel', 'bert', 'cls.predictions.decoder.weight', 'bert.embeddings.word_embeddings.weight'),
      ('bias', 'roberta', 'lm_head.decoder.bias', 'lm_head.bias'))
  def test_a_copy_of_what_is_tied_is_taken_and_another_array_refused(self, family, copy, tensor):
    folder = self._folder(family)
    opened = tensor_file.TensorFile(folder / 'model.safetensors')
    arrays = {name: np.array(opened.array(name)) for name in opened.tensors}
    tensor_file.write(folder / 'model.safetensors', arrays | {copy: arrays[tensor]})
    source.DirectorySource(folder)
    changed = arrays[tensor].copy()
    changed[-1] += 1
    for other in (changed, changed[:-1], np.float32(0)):
      tensor_file.write(folder / 'model.safetensors', arrays | {copy: np.asarray(other, np.float32)})
      with self.assertRaisesRegex(errors.UserError, f'{copy} is not {tensor}'):
        source.DirectorySource(folder)

  @parameterized.parameters('heads', 'parts')
  def test_fused_tensors_hold_queries_keys_and_values(self, fused):
    q, k, v = (np.arange(6).reshape(1, 6) + 10 * i for i in range(3))
    tensor = names.Layout(transposed=True, fused=fused, heads=2).give(q, k, v)
    self.assertEqual(tensor[:, 0].tolist(), {
        'heads': [0, 1, 2, 10, 11, 12, 20, 21, 22, 3, 4, 5, 13, 14, 15, 23, 24, 25],
        'parts': [*range(6), *range(10, 16), *range(20, 26)]}[fused])
    for part, want in enumerate((q, k, v)):
      layout = names.Layout(transposed=True, fused=fused, heads=2, part=part)
      np.testing.assert_array_equal(layout.take(tensor), want)
      self.assertEqual(layout.shape(want.shape), tensor.shape)


if __name__ == '__main__':
  absltest.main()
