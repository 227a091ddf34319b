"""A Hugging Face directory in place of a workdir: scored, quantized block by block, scored again; or refused."""

import json
import math
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from jaxquant.evaluation import perplexity
from jaxquant.interop import manifest
from jaxquant.interop import source
from tests import launching
from tests import model_directories

_PTQ = ('--config=configs/ptq/gptq_w4a16_g128.py', '--config.group_size=16', '--config.calibration_windows=8')


class ImportsTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = launching.folder() / 'imports'
    cls.text = launching.folder() / 'validation.txt'
    for family in ('llama', 'bert'):
      model_directories.write(cls.folder / family, family, shards=2)

  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(self.create_tempdir().full_path) / 'workdir'

  def _run(self, launcher, model, *flags):
    return launching.run(launcher, f'--model={model}', f'--workdir={self.workdir}', *flags)

  @parameterized.parameters('llama', 'bert')
  def test_scored_with_its_own_tokenizer_and_context_length(self, family):
    finished = self._run('evaluate', self.folder / family, f'--text={self.text}')
    self.assertEqual((finished.code, finished.error), (0, ''))
    record, = launching.evaluations(self.workdir)
    opened, text = source.DirectorySource(self.folder / family), self.text.read_text(encoding='utf-8')
    self.assertEqual(record['tokens'], len(text.encode()) + 1)  # A token for each byte, behind <s>.
    tokens = np.array(model_directories.tokenizer().encode(text).ids)
    want = perplexity.score(opened.whole(), opened.config, tokens, len(text.encode()), length=32)
    self.assertLess(abs(math.log(record['perplexity'] / want.perplexity)), 1e-4)
    self.assertEqual(json.loads((self.workdir / 'config.json').read_text())['length'], 32)

  def test_quantized_and_scored_again(self):
    finished = self._run('quantize', self.folder / 'llama', *_PTQ, f'--calibration={self.text}', f'--text={self.text}')
    self.assertEqual((finished.code, finished.error), (0, ''))
    lines = [line for line in finished.output.splitlines() if line.startswith('calibrated ')]
    self.assertEqual([line.split()[1] for line in lines], ['layers/0', 'layers/1'])
    carried = [path.name for path in (self.workdir / 'origin').iterdir()]
    self.assertCountEqual(carried, ['config.json', 'tokenizer.json'])
    content = manifest.verify(self.workdir)
    self.assertEqual(content['provenance']['ptq']['methods'], ['gptq'])
    self.assertEqual(content['parameters']['layers/1/mlp/up/kernel']['group_size'], 16)
    self.assertIn('origin/config.json', content['files'])
    quantized, = launching.evaluations(self.workdir)
    self.assertEqual((quantized['variant'], quantized['method'], quantized['weights']), ('imported', 'gptq', 4))
    again = self.workdir.with_name('again')
    finished = launching.run('evaluate', f'--model={self.workdir}', f'--workdir={again}', f'--text={self.text}')
    self.assertEqual((finished.code, finished.error), (0, ''))
    record, = launching.evaluations(again)
    self.assertEqual(record, quantized)

  @parameterized.parameters({}, {'family': 'bert'})
  def test_split_over_devices_it_scores_as_on_one(self, **changes):
    model = model_directories.write(self.create_tempdir().full_path, **changes)
    scores = []
    for devices, flags in ((1, []), (2, ['--fully_sharded'])):
      workdir = self.workdir / str(devices)
      finished = launching.run(
          'evaluate', f'--model={model}', f'--workdir={workdir}', f'--text={self.text}', *flags, devices=devices)
      self.assertEqual((finished.code, finished.error), (0, ''))
      scores.append(launching.evaluations(workdir)[0]['perplexity'])
    self.assertLess(abs(scores[1] / scores[0] - 1), 1e-5)

  @parameterized.named_parameters(
      ('no_calibration', 'quantize', {}, _PTQ, ['--calibration=FILE is needed']),
      ('variant', 'evaluate', {}, ['--variant=both'], ['neither variants nor seeds']),
      ('long_windows', 'evaluate', {}, ['--length=33'], ['--length=33', '32']),
      ('architecture', 'evaluate', {'model_type': 'mamba'}, [], ["'mamba'", 'llama']),
      ('rope', 'evaluate', {'rope_scaling': {'rope_type': 'yarn'}}, [], ["'yarn'"]),
      ('quantized', 'evaluate', {'quantization_config': {'quant_method': 'fp8'}}, [], ['fp8']),
      ('no_head', 'evaluate', {'family': 'bert, no head'}, [], ['has no language-model head']),
      ('shape', 'quantize', {'intermediate_size': 63}, [*_PTQ, '--calibration={text}'], ['instead of']))
  def test_refused(self, launcher, changes, flags, words):
    model = model_directories.write(self.create_tempdir().full_path, **changes)
    flags = [flag.format(text=self.text) for flag in flags]
    finished = self._run(launcher, model, f'--text={self.text}', *flags)
    self.assertEqual(finished.code, 2, finished)
    self.assertLen(finished.error.splitlines(), 1)
    for word in words:
      self.assertIn(word, finished.error)
    self.assertFalse(self.workdir.exists())

  def test_an_encoder_whose_tokenizer_names_no_mask_scores_no_text(self):
    model = model_directories.write(self.create_tempdir().full_path, 'bert')
    content = (model / 'tokenizer.json').read_text()
    (model / 'tokenizer.json').write_text(content.replace('<mask>', '<hide>'))
    finished = self._run('evaluate', model, f'--text={self.text}')
    self.assertEqual((finished.code, finished.error.count('\n')), (2, 1), finished)
    self.assertIn('names no mask', finished.error)
    self.assertFalse(self.workdir.exists())

  @parameterized.named_parameters(
      ('missing', 'tokenizer.json', None, ['has no tokenizer.json']),
      ('none', 'tokenizer.json', '{}', ['not a tokenizer.json']),
      ('deep', 'config.json', '[' * 100_000, ['config.json cannot be read']),
      ('weights', 'model.safetensors', 'x' * 100, ['no whole safetensors file']))
  def test_files_that_are_wrong(self, name, content, words):
    model = model_directories.write(self.create_tempdir().full_path)
    (model / name).unlink()
    if content is not None:
      (model / name).write_text(content)
    finished = self._run('evaluate', model, f'--text={self.text}')
    self.assertEqual(finished.code, 2, finished)
    self.assertLen(finished.error.splitlines(), 1)
    for word in words:
      self.assertIn(word, finished.error)
    self.assertFalse(self.workdir.exists())


if __name__ == '__main__':
  absltest.main()
