"""What GPTQ and AWQ mean by the bytes of an export, written down a second time: of every family, it evaluates as ours.

Their own loaders are in no extra (tests/peers/gptqmodel_test.py), so that the formats' definitions stand in for them.
"""

import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from jaxquant.interop import source
from jaxquant.interop import tensor_file
from jaxquant.interop import writing
from tests import exporting
from tests import model_directories
from tests import networks

_DTYPES = {'F32': '<f4', 'F16': '<f2', 'I32': '<i4'}
# Output of a run of eight that nibble j of a word of AWQ holds.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_FAMILIES = [family for family in model_directories.CONFIGS if family != 'bert, no head']


def _tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The arrays of a safetensors file."""
  content = path.read_bytes()
  start = 8 + int.from_bytes(content[:8], 'little')
  entries = json.loads(content[8:start])
  entries.pop('__metadata__')
  return {name: np.frombuffer(content[start:][slice(*entry['data_offsets'])], _DTYPES[entry['dtype']]).reshape(
      entry['shape']) for name, entry in entries.items()}


def _nibbles(words: np.ndarray) -> np.ndarray:
  """[..., words] -> [..., words, 8], the lowest four bits first."""
  return words.view('<u4')[..., None] >> np.arange(0, 32, 4, dtype=np.uint32) & 15


def _values(kind: str, qweight, qzeros, scales, g_idx=None) -> np.ndarray:
  """The kernel, float32 [in, out]: (code - zero point) * scale, of the group of its input."""
  outputs = scales.shape[1]
  if kind == 'awq':
    place = np.empty(8, int)
    place[list(_AWQ_ORDER)] = np.arange(8)
    codes, zeros = (_nibbles(words)[..., place].reshape(-1, outputs) for words in (qweight, qzeros))
    g_idx = np.arange(len(codes)) // (len(codes) // len(scales))
  else:
    codes = np.moveaxis(_nibbles(qweight), -1, 1).reshape(-1, outputs)
    zeros = _nibbles(qzeros).reshape(-1, outputs) + (kind == 'gptq')
  return (codes.astype(np.float32) - zeros[g_idx]) * scales.astype(np.float32)[g_idx]


class DequantizationTest(parameterized.TestCase):

  def _floats(self, exported: pathlib.Path, kind: str, transposed: bool) -> pathlib.Path:
    """Writes the export as a model in floats: its directory."""
    tensors, folder = _tensors(exported / 'model.safetensors'), exported.with_name('floats')
    modules = sorted(name.removesuffix('.qweight') for name in tensors if name.endswith('.qweight'))
    for module in modules:
      parts = ('qweight', 'qzeros', 'scales') + (() if kind == 'awq' else ('g_idx',))
      kernel = _values(kind, *(tensors.pop(f'{module}.{part}') for part in parts))
      tensors[f'{module}.weight'] = kernel.T if transposed else kernel
    config = json.loads((exported / 'config.json').read_text())
    del config['quantization_config']
    folder.mkdir()
    (folder / 'config.json').write_text(json.dumps(config))
    tensor_file.write(folder / 'model.safetensors', tensors)
    return folder

  # AWQ knows linears of torch alone, and those of GPT-2 are none.
  @parameterized.parameters(*((family, kind) for family in _FAMILIES for kind in ('gptq', 'gptq_v2', 'awq')
                              if (family, kind) != ('gpt2', 'awq')))
  def test_logits(self, family, kind):
    folder = pathlib.Path(self.create_tempdir().full_path)
    opened, params = exporting.quantized(folder / 'model', 'uint4', 32, family=family)
    exported = writing.write(folder / 'exported', params, opened.directory, kind)
    read = source.DirectorySource(self._floats(exported, kind, transposed=family != 'gpt2'))
    evaluate = networks.evaluator(opened.config, jit=networks.quick_jit)
    with jax.default_matmul_precision('highest'):
      got, want, exact = (np.asarray(evaluate(tree, networks.tokens(2))) for tree in (
          read.whole(), params, opened.whole()))
    # Scales of 16 bits are rounded by up to 5e-4; codes or zero points that are off by one would do what rounding does.
    self.assertLess(np.abs(got - want).max(), 3e-3 * np.abs(want).max())
    self.assertGreater(np.abs(exact - want).max(), 3e-2 * np.abs(want).max())


if __name__ == '__main__':
  absltest.main()
