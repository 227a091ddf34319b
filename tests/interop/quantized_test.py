"""What is exported is read again as what it was; what contradicts itself, or has no place in a format, is refused."""

import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from jaxquant import errors
from jaxquant.calibration import driver
from jaxquant.interop import export
from jaxquant.interop import matrices
from jaxquant.interop import source
from jaxquant.interop import tensor_file
from jaxquant.interop import writing
from jaxquant.models import staging
from jaxquant.models import validate
from jaxquant.numerics import formats
from jaxquant.numerics import qtensor
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.numerics import two_level
from jaxquant.transforms import recipes
from tests import exporting
from tests import model_directories
from tests import networks


class QuantizedTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def _export(self, kind='compressed-tensors', weights='uint4', **options):
    """(source, tree, directory of the export)."""
    opened, params = exporting.quantized(self.folder / 'model', weights, **options)
    return opened, params, writing.write(self.folder / 'exported', params, opened.directory, kind)

  def _change(self, folder, **arrays):
    """Rewrites tensors of an export."""
    opened = tensor_file.TensorFile(folder / 'model.safetensors')
    old = {name: np.array(opened.array(name)) for name in opened.tensors}
    tensor_file.write(folder / 'model.safetensors', old | arrays)

  def _configure(self, folder, **changes):
    config = json.loads((folder / 'config.json').read_text())
    config['quantization_config'] |= changes
    (folder / 'config.json').write_text(json.dumps(config))

  def _assert_refused(self, folder, *words):
    with self.assertRaises(errors.UserError) as caught:
      source.DirectorySource(folder).whole()
    for word in words:
      self.assertIn(word, str(caught.exception))

  @parameterized.product(kind=list(export.CODED), family=['llama', 'qwen3', 'opt, post-norm', 'bloom'])
  def test_values_are_those_that_were_written(self, kind, family):
    # Version 1 of GPTQ lacks zero points of zero, which groups of one sign have.
    opened, params, folder = self._export(kind, 'int4' if kind == 'gptq' else 'uint4', family=family)
    read = source.DirectorySource(folder)
    self.assertEqual(read.config, opened.config)
    whole = read.whole()
    validate.validate(whole, read.config)
    shapes = lambda tree: {path: (leaf.shape, leaf.dtype) for path, leaf in trees.arrays(tree).items()}
    self.assertEqual(shapes(read.abstract()), shapes(whole))
    self.assertEqual(jax.tree.structure(read.abstract()), jax.tree.structure(whole))
    self.assertEqual(read.load('layers/1').keys(), whole['layers']['1'].keys())
    self.assertCountEqual(trees.linears(whole), trees.linears(params))
    for path in trees.linears(params):
      got, want = (trees.get(tree, path)['kernel'] for tree in (whole, params))
      self.assertEqual(isinstance(got, qtensor.QTensor), path.startswith('layers/'))
      if isinstance(want, qtensor.QTensor):
        # Scales of 16 bits are those that were written, rounded.
        got, want = quantize.dequantize(got), quantize.dequantize(want)
      tolerance = 0 if kind == 'compressed-tensors' else 1e-3
      np.testing.assert_allclose(got, want, rtol=tolerance, atol=0, err_msg=path)

  @parameterized.parameters(*export.CODED)
  def test_linears_as_wide_as_a_group_are_grouped_as_the_others_are(self, kind):
    # Of 32 inputs and, in the MLP, of 64.
    opened, params, folder = self._export(kind, 'int4', group_size=32)
    asked = json.loads((folder / 'config.json').read_text())['quantization_config']
    if kind == 'compressed-tensors':
      (group,), asked = asked['config_groups'].values(), None
      self.assertEqual((group['targets'], group['weights']['strategy']), (['Linear'], 'group'))
      asked = group['weights']
    self.assertEqual(asked['group_size'], 32)
    evaluate = networks.evaluator(opened.config, jit=networks.quick_jit)
    got, want = (evaluate(tree, networks.tokens(2)) for tree in (source.DirectorySource(folder).whole(), params))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 if kind == 'compressed-tensors' else 1e-2)

  @parameterized.parameters('int4', 'full_int4', 'int8', 'int3')
  def test_symmetric_codes_stay_symmetric(self, weights):
    opened, params, folder = self._export(weights=weights)
    whole = source.DirectorySource(folder).whole()
    kernel = whole['layers']['0']['mlp']['up']['kernel']
    self.assertEqual((kernel.format.name, kernel.zero_point), (f'full_int{weights[-1]}', None))
    evaluate = networks.evaluator(opened.config, jit=networks.quick_jit)
    np.testing.assert_allclose(evaluate(whole, networks.tokens(2)), evaluate(params, networks.tokens(2)), atol=1e-6)

  @parameterized.parameters('int4', 'full_int4')
  def test_two_level_scales_are_scales(self, weights):
    opened = source.DirectorySource(model_directories.write(self.folder / 'model', 'llama'))
    grid = quantizers.WeightQuantizer(formats.parse(weights), group_size=16, two_level=True)
    recipe = recipes.Recipe(weight=grid, activation=None)
    params = driver.run(opened, staging.staged(opened.config), recipe.steps([]), []).params
    whole = source.DirectorySource(
        writing.write(self.folder / 'exported', params, opened.directory, 'compressed-tensors')).whole()
    for path in trees.linears(params):
      kernel, got = (trees.get(tree, path)['kernel'] for tree in (params, whole))
      if isinstance(kernel, qtensor.QTensor):
        np.testing.assert_array_equal(got.scale, kernel.scale)
        self.assertIsNotNone(two_level.levels(got.scale))
        np.testing.assert_array_equal(quantize.dequantize(got), quantize.dequantize(kernel))

  @parameterized.parameters('full_int8', 'uint8', 'full_int4')
  def test_quantized_activations_come_back_at_their_sites(self, activations):
    opened, params, folder = self._export(weights='int8', activations=activations, group_size=None)
    whole = source.DirectorySource(folder).whole()
    self.assertCountEqual(trees.inputs(whole), trees.inputs(params))
    for site in trees.inputs(params):
      self.assertEqual(trees.get(whole, site)['quantizer'], trees.get(params, site)['quantizer'])
    evaluate = networks.evaluator(opened.config, jit=networks.quick_jit)
    np.testing.assert_array_equal(evaluate(whole, networks.tokens(2)), evaluate(params, networks.tokens(2)))

  @parameterized.product(weights=['int4', 'int8'], quantizer=[
      quantizers.ClipQuantizer(np.float32(-0.7), np.float32(1.9), 4, align_zero=True),
      quantizers.ClipQuantizer(np.float32(0), np.float32(3), 8, align_zero=True),
      quantizers.PactQuantizer(np.float32(1.3), 4, signed=False), quantizers.StepQuantizer(np.float32(0.11), 5)])
  def test_static_ranges_come_back_at_their_sites(self, weights, quantizer):
    opened, unranged = exporting.quantized(self.folder / 'model', weights, family='bloom')
    params = unranged
    for i, site in enumerate(site.name for site in staging.model_sites(opened.config)[:-1]):
      scaled = jax.tree.map(lambda end: np.float32(end * (1 + i / 8)), quantizer)  # pylint: disable=cell-var-from-loop
      params = trees.put(params, f'{site}/quantizer', scaled)
    read = source.DirectorySource(
        writing.write(self.folder / 'exported', params, opened.directory, 'compressed-tensors'))
    whole = read.whole()
    validate.validate(whole, read.config)
    self.assertEqual(jax.tree.structure(read.abstract()), jax.tree.structure(whole))
    self.assertEqual(read.load('layers/1').keys(), whole['layers']['1'].keys())
    evaluate = networks.evaluator(opened.config, jit=networks.quick_jit)
    got, want, without = (evaluate(tree, networks.tokens(2)) for tree in (whole, params, unranged))
    self.assertGreater(np.abs(want - without).max(), 1e-2)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)

  def test_static_ranges_that_are_wrong(self):
    opened, params = exporting.quantized(self.folder / 'model')
    params = trees.put(params, 'layers/0/attention/input/quantizer',
                       quantizers.ClipQuantizer(np.float32(-1), np.float32(1), 4, align_zero=True))
    folder = writing.write(self.folder / 'exported', params, opened.directory, 'compressed-tensors')
    name = 'model.layers.0.self_attn.q_proj'
    before = (folder / 'model.safetensors').read_bytes()
    for suffix, array, words in (
        ('input_scale', np.array([0.5], np.float32), ['quantize it differently']),
        ('input_scale', np.ones(2, np.float32), ['has shape (2,) instead of (1,)']),
        ('input_zero_point', np.array([1], np.int32), ['is int32, not int8'])):
      self._change(folder, **{f'{name}.{suffix}': array})
      self._assert_refused(folder, *words)
      (folder / 'model.safetensors').write_bytes(before)
    modules = [f'model.layers.0.self_attn.{each}_proj' for each in 'qkv']
    for suffix, array, words in (
        ('input_scale', np.array([np.nan], np.float32), ['input_scale is nan']),
        ('input_zero_point', np.array([8], np.int8), ['input_zero_point is beyond 4 bits'])):
      self._change(folder, **{f'{module}.{suffix}': array for module in modules})
      self._assert_refused(folder, name, *words)
      (folder / 'model.safetensors').write_bytes(before)

  def test_groups_in_any_order_are_gathered(self):
    opened, params, folder = self._export('gptq', 'uint4')
    name, order = 'model.layers.0.mlp.up_proj', np.random.default_rng(0).permutation(32)
    kernel = trees.get(params, 'layers/0/mlp/up/kernel')
    made = export.Export(params, opened.directory.config, 'gptq').codec
    matrix = matrices.from_qtensor(kernel, 'x')
    shuffled = made.encode(matrices.Matrix(
        matrix.codes[order], matrix.scale, matrix.zero_point, matrix.scheme), 'x')
    index = (np.arange(32) // 16).astype(np.int32)[order]
    self._change(folder, **{f'{name}.qweight': np.ascontiguousarray(shuffled['qweight']), f'{name}.g_idx': index})
    self._assert_refused(folder, name, 'desc_act')
    self._configure(folder, desc_act=True)
    read = source.DirectorySource(folder)
    whole = read.whole()
    validate.validate(whole, read.config)
    self.assertEqual(jax.tree.structure(read.abstract()), jax.tree.structure(whole))
    layer = trees.get(whole, 'layers/0/mlp/up')
    got = np.zeros((32, 64), np.float32)
    got[layer['input']['gather']] = quantize.dequantize(layer['kernel'])
    np.testing.assert_allclose(got, np.asarray(quantize.dequantize(kernel))[order], rtol=1e-3)
    evaluate = networks.evaluator(opened.config, jit=networks.quick_jit)
    self.assertTrue(np.isfinite(evaluate(whole, networks.tokens(2))).all())

  def test_biases_of_zeros_that_the_architecture_lacks_are_nothing(self):
    _, _, folder = self._export('gptq')
    self._change(folder, **{'model.layers.0.mlp.up_proj.bias': np.zeros(64, np.float16)})
    self.assertNotIn('bias', source.DirectorySource(folder).whole()['layers']['0']['mlp']['up'])
    self._change(folder, **{'model.layers.0.mlp.up_proj.bias': np.ones(64, np.float16)})
    self._assert_refused(folder, 'model.layers.0.mlp.up_proj.bias', 'no place for')

  @parameterized.named_parameters(
      ('method', dict(quant_method='bitsandbytes'), ["'bitsandbytes'", 'gptq, awq, compressed-tensors']),
      ('version', dict(checkpoint_format='gptq_v2'), ['checkpoint_format', 'wrong?']),
      ('bits', dict(bits=8), ['qweight has shape', 'instead of']),
      ('groups', dict(group_size=8), ['has shape', 'instead of']),
      ('uneven_groups', dict(group_size=24), ['groups of 24 do not divide the 32 inputs']))
  def test_labels_that_are_wrong(self, changes, words):
    _, _, folder = self._export('gptq', 'int4')
    self._configure(folder, **changes)
    self._assert_refused(folder, *words)

  def test_tensors_that_are_wrong(self):
    _, _, folder = self._export('gptq', 'int4')
    name = 'model.layers.1.mlp.down_proj'
    for suffix, array, words in (
        ('qweight', np.zeros((8, 32), np.int64), ['is int64, not int32']),
        ('scales', np.zeros((4, 31), np.float16), ['has shape (4, 31) instead of (4, 32)']),
        ('scales', np.full((4, 32), np.inf, np.float16), ['a scale is not finite'])):
      before = (folder / 'model.safetensors').read_bytes()
      self._change(folder, **{f'{name}.{suffix}': array})
      self._assert_refused(folder, name, *words)
      (folder / 'model.safetensors').write_bytes(before)

  def test_linears_that_share_a_site_must_agree(self):
    _, _, folder = self._export(weights='int8', activations='full_int8', group_size=None)
    config = json.loads((folder / 'config.json').read_text())['quantization_config']['config_groups']
    other = json.loads(json.dumps(config['group_0']))
    other['targets'], other['input_activations']['num_bits'] = ['re:.*q_proj'], 4
    self._configure(folder, config_groups={'a': other, **config})
    self._assert_refused(folder, 'layers/0/attention/q', 'quantize it differently')


class RefusalsTest(parameterized.TestCase):

  def _assert_refused(self, params, origin, kind, *words):
    with self.assertRaises(errors.UserError) as caught:
      export.Export(params, origin, kind)
    for word in words:
      self.assertIn(word, str(caught.exception))

  def _quantized(self, weights='uint4', **options):
    opened, params = exporting.quantized(pathlib.Path(self.create_tempdir().full_path), weights, **options)
    return params, opened.directory.config

  @parameterized.named_parameters(
      ('dint', 'compressed-tensors', 'dint4', {}, ['layers/0', 'special codes']),
      ('bits_gptq', 'gptq', 'uint3', {}, ['2, 4, 8 bits, not 3']),
      ('bits_awq', 'awq', 'uint8', {}, ['4 bits, not 8']),
      ('activations_gptq', 'gptq', 'uint4', dict(activations='full_int8'), ['weights alone']),
      ('narrow', 'compressed-tensors', 'uint4', dict(activations='int8'), ['attention/input', 'full_int8']),
      ('some_linears', 'gptq', 'uint4', dict(pattern='layers/0/.*'), ['layers/1/attention/', 'left in floats']),
      ('head', 'gptq', 'uint4', dict(pattern='(layers/.*|head)'), ['lm_head', 'linears of the blocks alone']),
      ('embedding', 'compressed-tensors', 'uint4', dict(pattern='(layers/.*|embedding)', group_size=None), [
          'embedding/kernel', 'tables']),
      ('conv1d', 'compressed-tensors', 'uint4', dict(family='gpt2'), ['Conv1D']),
      ('kind', 'gguf', 'uint4', {}, ["'gguf'", 'compressed-tensors, gptq']))
  def test_what_a_format_cannot_express(self, kind, weights, options, words):
    self._assert_refused(*self._quantized(weights, **options), kind, *words)

  @parameterized.named_parameters(
      ('bias', 'layers/0/mlp/up/bias', np.zeros(64, np.float32), ['bias where the architecture has none']),
      ('shift', 'layers/0/mlp/input/shift', np.zeros(32, np.float32), ['a shift of channels']),
      ('gather', 'layers/0/mlp/up/input/gather', np.arange(32), ['a reordering of channels']),
      ('operand', 'layers/1/attention/value/quantizer', quantizers.ClipQuantizer(np.float32(-1), np.float32(1), 4), [
          'ClipQuantizer']),
      ('residual', 'layers/0/mlp_residual/scale', np.ones(32, np.float32), ['residual branch']),
      ('training', 'layers/0/mlp/up/kernel_quantizer', quantizers.WeightQuantizer(formats.parse('int4')), [
          'WeightQuantizer']),
      ('unknown', 'layers/0/other', np.ones(2, np.float32), ['no place for it']))
  def test_what_no_format_has_a_place_for(self, path, value, words):
    params, origin = self._quantized()
    for kind in export.FORMATS:
      self._assert_refused(trees.put(params, path, value), origin, kind, path, *words)

  @parameterized.named_parameters(
      ('no_level', quantizers.ClipQuantizer(np.float32(-1), np.float32(1), 4), ['zero is not a level', 'align_zero']),
      ('above', quantizers.ClipQuantizer(np.float32(1), np.float32(16), 4), ['zero is not a level']),
      ('pact', quantizers.PactQuantizer(np.float32(1), 4), ['zero is not a level']),
      ('channels', quantizers.ClipQuantizer(np.zeros(32, np.float32), np.ones(32, np.float32), 4), ['each channel']))
  def test_static_ranges_that_no_format_has(self, quantizer, words):
    params, origin = self._quantized()
    params = trees.put(params, 'layers/0/mlp/input/quantizer', quantizer)
    self._assert_refused(params, origin, 'compressed-tensors', 'layers/0/mlp/input', *words)

  def test_what_is_quantized_is_not_float(self):
    self._assert_refused(*self._quantized(), 'float', 'layers/0/attention/', 'its kernel holds codes')
    config = model_directories.CONFIGS['llama']
    params = trees.put(model_directories.params(config), 'layers/1/mlp/input/quantizer',
                       quantizers.DynamicQuantizer(formats.parse('uint8')))
    self._assert_refused(params, config, 'float', 'layers/1/mlp/', 'its activations are quantized')

  def test_input_channels_and_mixed_schemes(self):
    params, origin = self._quantized()
    kernel = quantize.quantize(np.ones((32, 64), np.float32), formats.parse('uint4'), axis=-1)
    self._assert_refused(trees.put(params, 'layers/0/mlp/up/kernel', kernel), origin, 'gptq', 'input channels')
    kernel = quantize.quantize(np.ones((32, 64), np.float32), formats.parse('uint4'), group_size=8)
    params = trees.put(params, 'layers/0/mlp/up/kernel', kernel)
    self._assert_refused(params, origin, 'awq', 'one scheme', 'groups of 8', 'groups of 16')
    export.Export(params, origin, 'compressed-tensors')

  def test_parts_of_a_fused_tensor_must_agree(self):
    params, origin = self._quantized(family='bloom')
    kernel = quantize.quantize(np.ones((32, 32), np.float32), formats.parse('uint4'), group_size=8)
    self._assert_refused(trees.put(params, 'layers/0/attention/k/kernel', kernel), origin, 'compressed-tensors',
                         'layers/0/attention/', 'query_key_value is one tensor')

  def test_float_models_and_encoders_without_a_head(self):
    config = model_directories.CONFIGS['llama']
    self._assert_refused(model_directories.params(config), config, 'awq', 'no integer codes')
    params, origin = self._quantized(family='bert')
    self._assert_refused(params, {**origin, 'architectures': ['BertModel']}, 'compressed-tensors', 'pooler')


if __name__ == '__main__':
  absltest.main()
