"""Every family as transformers evaluates it: logits agree to 1e-5 in float32, whatever form its files have."""

import json
import pathlib
import shutil

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from jaxquant.evaluation import sentences
from jaxquant.interop import source
from tests import networks
from tests import peering


def _logits(folder, ids):
  """Our logits of a directory."""
  opened = source.DirectorySource(folder)
  with jax.default_matmul_precision('highest'):
    return np.asarray(networks.evaluator(opened.config, jit=networks.quick_jit)(opened.whole(), ids))


@peering.needed
class ImportsTest(parameterized.TestCase):

  def _assert_agrees(self, folder):
    want, got = peering.logits(folder, peering.tokens()), _logits(folder, peering.tokens())
    self.assertEqual(got.dtype, np.float32)
    self.assertGreater(np.abs(want).max(), 0.5)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)

  def _copy(self, family, **options):
    """A copy of a model that may be changed."""
    folder = self.create_tempdir().full_path
    return pathlib.Path(shutil.copytree(peering.saved(family, **options), folder, dirs_exist_ok=True))

  @parameterized.parameters(*peering.FAMILIES)
  def test_logits(self, family):
    self._assert_agrees(peering.saved(family))

  def test_sharded_files(self):
    folder = peering.saved('llama2', max_shard_size='60KB')
    self.assertGreater(len(list(folder.glob('*.safetensors'))), 2)
    np.testing.assert_array_equal(_logits(folder, peering.tokens()), _logits(peering.saved('llama2'), peering.tokens()))

  @parameterized.parameters('llama2', 'llama3')
  def test_config_of_transformers_4(self, family):
    folder = self._copy(family)
    want = source.DirectorySource(folder).config
    rope = dict(json.loads((folder / 'config.json').read_text())['rope_parameters'])
    peering.config(folder, rope_parameters=None, dtype=None, torch_dtype='float32', rope_theta=rope.pop('rope_theta'),
                   rope_scaling=rope if rope['rope_type'] != 'default' else None)
    self.assertEqual(source.DirectorySource(folder).config, want)

  @parameterized.parameters('gpt2', 'bloom', 'bert')
  def test_names_without_their_base(self, family):
    folder = self._copy(family)
    _, transformers = peering.libraries()
    kind = getattr(transformers, peering.FAMILIES[family][0])
    model = kind.from_pretrained(folder)
    (folder / 'model.safetensors').unlink()
    model.base_model.save_pretrained(folder)
    peering.config(folder, architectures=['BertModel'] if family == 'bert' else [peering.FAMILIES[family][0]])
    with_base, without = (source.DirectorySource(path) for path in (peering.saved(family), folder))
    np.testing.assert_array_equal(
        without.load('layers/1')['attention']['q']['kernel'], with_base.load('layers/1')['attention']['q']['kernel'])

  @parameterized.product(family=['bert', 'roberta'], pooling=['mean', 'first'])
  def test_sentence_embeddings(self, family, pooling):
    torch, transformers = peering.libraries()
    model = transformers.AutoModel.from_pretrained(peering.saved(family))
    with torch.no_grad():
      hidden = model(torch.tensor(peering.tokens())).last_hidden_state.numpy()
    opened = source.DirectorySource(peering.saved(family))
    with jax.default_matmul_precision('highest'):
      got = sentences.pooled(opened.whole(), peering.tokens(), config=opened.config, pooling=pooling)
    np.testing.assert_allclose(got, hidden[:, 0] if pooling == 'first' else hidden.mean(axis=1), rtol=0, atol=1e-5)

  @parameterized.parameters('bfloat16', 'float16')
  def test_16_bits_load_as_the_values_that_they_are(self, dtype):
    torch, transformers = peering.libraries()
    model = transformers.AutoModelForCausalLM.from_pretrained(peering.saved('qwen3'), dtype=getattr(torch, dtype))
    folder = self.create_tempdir().full_path
    model.save_pretrained(folder)
    opened = source.DirectorySource(folder)
    self.assertEqual(opened.config.dtype, dtype)
    want = model.model.layers[1].mlp.up_proj.weight.detach().float().numpy().T
    np.testing.assert_array_equal(opened.load('layers/1')['mlp']['up']['kernel'], want)


if __name__ == '__main__':
  absltest.main()
