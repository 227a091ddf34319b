"""Checkpoints that compressed-tensors itself wrote evaluate here as there."""

import importlib
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from jaxquant.interop import source
from jaxquant.numerics import trees
from tests import networks
from tests import peering

_GROUP = 16


def _written(folder: pathlib.Path, bits: int, symmetric: bool, strategy: str, activations: str) -> np.ndarray:
  """Writes a model that compressed-tensors quantized: its logits for `peering.tokens`, before it is packed."""
  torch, transformers = peering.libraries()
  quantization = importlib.import_module('compressed_tensors.quantization')
  utils = importlib.import_module('compressed_tensors.quantization.utils')
  compressors = importlib.import_module('compressed_tensors.compressors')
  model = transformers.AutoModelForCausalLM.from_pretrained(peering.saved('llama2'))
  weights = quantization.QuantizationArgs(
      num_bits=bits, type='int', symmetric=symmetric, strategy=strategy,
      group_size=_GROUP if strategy == 'group' else None, actorder='static' if strategy == 'group' else None)
  inputs = None if not activations else quantization.QuantizationArgs(
      num_bits=8, type='int', symmetric=False, strategy='token', dynamic=True)
  scheme = quantization.QuantizationScheme(targets=['Linear'], weights=weights, input_activations=inputs)
  quantization.apply_quantization_config(model, quantization.QuantizationConfig(
      config_groups={'group_0': scheme}, ignore=['lm_head'], quantization_status='frozen'))
  for module in model.modules():
    if getattr(module, 'weight_scale', None) is not None:
      count, width = module.weight.shape
      shape = {'group': (count, -1, _GROUP), 'channel': (count, 1, width), 'tensor': (1, count * width)}[strategy]
      rows = module.weight.detach().reshape(shape)
      scale, zero_point = utils.calculate_qparams(rows.amin(-1), rows.amax(-1), weights)
      module.weight_scale.data.copy_(scale)
      if not symmetric:
        module.weight_zero_point.data.copy_(zero_point)
  with torch.no_grad():
    logits = model(torch.tensor(peering.tokens(), dtype=torch.long)).logits.numpy()
  compressor = compressors.ModelCompressor.from_pretrained_model(model)
  compressor.compress_model(model)
  model.save_pretrained(folder)
  compressor.update_config(folder)
  return logits


@peering.needed
class QuantizedImportsTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('w4a16', 4, True, 'group', ''), ('w4a16_asymmetric', 4, False, 'group', ''),
      ('w3a16_dense', 3, True, 'group', ''), ('w8a16_channels', 8, True, 'channel', ''),
      ('w8a16_tensors', 8, True, 'tensor', ''), ('w8a8', 8, True, 'channel', 'uint8'),
      ('w4a8', 4, True, 'group', 'uint8'))
  def test_logits(self, bits, symmetric, strategy, activations):
    folder = pathlib.Path(self.create_tempdir().full_path)
    want = _written(folder, bits, symmetric, strategy, activations)
    opened = source.DirectorySource(folder)
    params = opened.whole()
    kernel = params['layers']['0']['mlp']['up']['kernel']
    self.assertEqual(kernel.format.name, f'full_int{bits}' if symmetric else f'uint{bits}')
    self.assertEqual([trees.get(params, site)['quantizer'].format.name for site in trees.inputs(params)],
                     [activations] * 8 if activations else [])
    with jax.default_matmul_precision('highest'):
      got = networks.evaluator(opened.config, jit=networks.quick_jit)(params, peering.tokens())
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * np.abs(want).max())


if __name__ == '__main__':
  absltest.main()
