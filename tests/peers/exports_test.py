"""What we export, transformers loads cleanly, by the format's own loader, and evaluates as we do."""

import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant.calibration import driver
from jaxquant.interop import source
from jaxquant.interop import writing
from jaxquant.layers import linear
from jaxquant.models import staging
from jaxquant.numerics import formats
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.transforms import recipes
from tests import networks
from tests import peering

_CT = 'compressed-tensors'


def quantized(folder, weights: str, group_size=16, activations: str | None = None, methods=('round_to_nearest',)):
  """(source of the model in a folder, its quantized tree)."""
  opened = source.DirectorySource(folder)
  recipe = recipes.Recipe(
      methods=methods, weight=quantizers.WeightQuantizer(formats.parse(weights), group_size=group_size),
      activation=quantizers.DynamicQuantizer(formats.parse(activations)) if activations else None)
  steps = recipe.steps(staging.model_sites(opened.config))
  return opened, driver.run(opened, staging.staged(opened.config), steps, [peering.tokens(8, 16)]).params


def logits(opened, params, ids) -> np.ndarray:
  """Our logits of a tree."""
  with jax.default_matmul_precision('highest'):
    return np.asarray(networks.evaluator(opened.config, jit=networks.quick_jit)(params, ids))


@peering.needed
class CompressedTensorsTest(parameterized.TestCase):

  def _export(self, opened, params, **options):
    folder = pathlib.Path(self.create_tempdir().full_path) / 'exported'
    return writing.write(folder, params, opened.directory, _CT, **options)

  def _assert_agrees(self, opened, params, folder, atol=2e-6, **options):
    ids = peering.tokens()
    want = logits(opened, params, ids)
    got = peering.logits(folder, ids, **options)
    self.assertGreater(np.abs(logits(opened, opened.whole(), ids) - want).max(), 5 * atol * np.abs(want).max())
    np.testing.assert_allclose(got, want, rtol=0, atol=atol * np.abs(want).max())

  @parameterized.parameters(*peering.EXPORTED)
  def test_4_bit_weights_of_every_family(self, family):
    opened, params = quantized(peering.saved(family), 'int4')
    self._assert_agrees(opened, params, self._export(opened, params))

  def test_floats_of_a_gpt2_whose_linears_compressed_tensors_does_not_know(self):
    opened = source.DirectorySource(peering.saved('gpt2'))
    folder = writing.write(
        pathlib.Path(self.create_tempdir().full_path) / 'exported', opened.whole(), opened.directory, 'float')
    want, got = peering.logits(peering.saved('gpt2'), peering.tokens()), peering.logits(folder, peering.tokens())
    np.testing.assert_array_equal(got, want)

  @parameterized.parameters(
      ('int2', None), ('int3', 16), ('int4', None), ('int5', 16), ('int6', None), ('full_int4', 16), ('int7', 16),
      ('int8', 16))
  def test_weights_of_any_bits(self, weights, group_size):
    opened, params = quantized(peering.saved('llama2'), weights, group_size)
    self._assert_agrees(opened, params, self._export(opened, params))

  @parameterized.parameters(('uint4', 16), ('uint8', None))
  def test_asymmetric_weights(self, weights, group_size):
    # The default route of the loader fails on zero points; see its `dequantize`.
    opened, params = quantized(peering.saved('llama2'), weights, group_size)
    _, transformers = peering.libraries()
    route = transformers.CompressedTensorsConfig(dequantize=True)
    self._assert_agrees(opened, params, self._export(opened, params), quantization_config=route)

  @parameterized.parameters(('int8', None, 'uint8'), ('int4', 16, 'uint8'), ('int4', 16, 'uint4'))
  def test_asymmetric_activations(self, weights, group_size, activations):
    opened, params = quantized(peering.saved('llama2'), weights, group_size, activations)
    folder = self._export(opened, params)
    layout = json.loads((folder / 'config.json').read_text())['quantization_config']['format']
    self.assertEqual(layout, 'int-quantized' if weights == 'int8' else 'pack-quantized')
    self._assert_agrees(opened, params, folder)

  @parameterized.parameters(('int8', None, 'full_int8'), ('int4', 16, 'full_int8'), ('int4', 16, 'full_int4'))
  def test_symmetric_activations_linear_by_linear(self, weights, group_size, activations):
    # The largest magnitude of a token lies on a tie there, so that the last bit of what a linear reads, which no two
    # programs share, decides on a code of it. Given the same activations, all linears agree.
    opened, params = quantized(peering.saved('llama2'), weights, group_size, activations)
    folder, ids = self._export(opened, params), peering.tokens()
    paths = {opened.names.module(path): path for path in trees.linears(params) if path.startswith('layers/')}
    sites = {path: site.name for site in staging.model_sites(opened.config) for path in site.consumers}
    traced = peering.linears(folder, ids, paths)
    self.assertLen(traced, 14)
    for module, (read, want) in traced.items():
      layer = {**trees.get(params, paths[module]), 'input': trees.get(params, sites[paths[module]])}
      with jax.default_matmul_precision('highest'):
        got = linear.linear(layer, jnp.asarray(read))
      np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * np.abs(want).max(), err_msg=module)
    # What ties decide is less than what rounding does.
    ours, exact = logits(opened, params, ids), logits(opened, opened.whole(), ids)
    self.assertLess(np.mean((peering.logits(folder, ids) - ours) ** 2), np.mean((ours - exact) ** 2))

  @parameterized.parameters('bfloat16', 'float16')
  def test_16_bits(self, dtype):
    opened, params = quantized(peering.saved('llama2'), 'int4')
    folder = self._export(opened, params, dtype=dtype)
    self.assertEqual(json.loads((folder / 'config.json').read_text())['dtype'], dtype)
    self._assert_agrees(opened, params, folder, atol=3e-2 if dtype == 'bfloat16' else 4e-3)

  # The loader takes a range for each element, hence none, of the two-dimensional activations in the MLP of OPT, so that
  # only its weights are quantized here.
  @parameterized.parameters(('opt', None, 'awq', 'gptq'), ('opt', None, 'outlier_suppression', 'round_to_nearest'),
                            ('qwen3', 'uint8', 'smooth_quant', 'gptq'))
  def test_folds(self, family, activations, *methods):
    opened, params = quantized(peering.saved(family), 'int4', 16, activations, methods)
    self._assert_agrees(opened, params, self._export(opened, params))

  def test_several_files(self):
    opened, params = quantized(peering.saved('qwen2'), 'int4')
    folder = self._export(opened, params, shard_bytes=15_000)
    self.assertGreater(len(list(folder.glob('*.safetensors'))), 2)
    self._assert_agrees(opened, params, folder)

  def test_linears_of_several_formats(self):
    opened, params = quantized(peering.saved('llama2'), 'int4')
    params['layers']['1'] = quantized(peering.saved('llama2'), 'int8', None)[1]['layers']['1']
    folder = self._export(opened, params)
    self.assertLen(json.loads((folder / 'config.json').read_text())['quantization_config']['config_groups'], 2)
    self._assert_agrees(opened, params, folder)


if __name__ == '__main__':
  absltest.main()
