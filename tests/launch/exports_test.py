"""launch.export: a quantized workdir becomes a directory that scores alike; what cannot be one is refused."""

import json
import math
import pathlib

from absl.testing import absltest
from absl.testing import parameterized

from jaxquant.interop import manifest
from tests import launching
from tests import model_directories

_PTQ = ('--config=configs/ptq/gptq_w4a16_g128.py', '--config.group_size=16', '--config.calibration_windows=8',
        '--config.weight_kind=uint')

# The windows of a workdir are as long as the sequences that it was trained on.
_AS_TRAINED = '--length=16'


class ExportsTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = launching.folder() / 'exports'
    cls.text = launching.folder() / 'validation.txt'
    model = model_directories.write(cls.folder / 'model')
    cls.workdir = cls.folder / 'quantized'
    finished = launching.run('quantize', *_PTQ, f'--model={model}', f'--workdir={cls.workdir}',
                             f'--calibration={cls.text}', f'--text={cls.text}')
    if finished.code:
      raise AssertionError(finished)

  def setUp(self):
    super().setUp()
    self.target = pathlib.Path(self.create_tempdir().full_path) / 'exported'

  def _score(self, model, *flags):
    workdir = self.target.with_name('scored')
    finished = launching.run('evaluate', f'--model={model}', f'--workdir={workdir}', f'--text={self.text}', *flags)
    self.assertEqual((finished.code, finished.error), (0, ''))
    return launching.evaluations(workdir)[0]

  @parameterized.parameters('compressed-tensors', 'gptq_v2', 'awq')
  def test_exported_scores_as_what_it_was_made_from(self, kind):
    finished = launching.run('export', f'--model={self.workdir}', f'--format={kind}', f'--output={self.target}')
    self.assertEqual((finished.code, finished.error), (0, ''))
    self.assertIn(f'{self.target}: {kind}, ', finished.output)
    content = manifest.verify(self.target)
    self.assertEqual(content['provenance']['ptq']['methods'], ['gptq'])
    self.assertEqual(content['provenance']['source']['workdir'], str(self.folder / 'model'))
    self.assertIn('error', content['decisions']['layers/1/mlp/down']['gptq'])
    got, want = self._score(self.target), launching.evaluations(self.workdir)[0]
    self.assertEqual((got['weights'], got['method']), (4, kind.removesuffix('_v2')))
    tolerance = 1e-6 if kind == 'compressed-tensors' else 1e-3
    self.assertLess(abs(math.log(got['perplexity'] / want['perplexity'])), tolerance)

  def test_what_was_trained_here_scores_as_it_did(self):
    finished = launching.run('export', f'--model={launching.trained()}', '--variant=baseline', '--format=float',
                             f'--output={self.target}')
    self.assertEqual((finished.code, finished.error), (0, ''))
    self.assertEqual(json.loads((self.target / 'config.json').read_text())['architectures'], ['LlamaForCausalLM'])
    want, = (each['perplexity'] for each in launching.evaluations(launching.trained())
             if (each['variant'], each['weights'], each['activations']) == ('baseline', 16, 16))
    self.assertLess(abs(math.log(self._score(self.target, _AS_TRAINED)['perplexity'] / want)), 1e-6)

  def test_ranges_that_were_learned_here(self):
    trained, workdir = (self.target.with_name(name) for name in ('trained', 'quantized'))
    finished = launching.run('train', launching.config(), f'--workdir={trained}', "--config.variants=('both',)",
                             '--config.qat.align_zero=True')
    self.assertEqual((finished.code, finished.error), (0, ''))
    finished = launching.run('quantize', '--config=configs/ptq/rtn_w4a4.py', '--config.calibration_windows=8',
                             f'--model={trained}', f'--workdir={workdir}', f'--text={self.text}')
    self.assertEqual((finished.code, finished.error), (0, ''))
    finished = launching.run('export', f'--model={workdir}', f'--output={self.target}')
    self.assertEqual((finished.code, finished.error), (0, ''))
    got, want = self._score(self.target, _AS_TRAINED), launching.evaluations(workdir)[0]
    self.assertEqual((got['weights'], got['activations'], got['activation_mode']), (4, 4, 'static'))
    self.assertLess(abs(math.log(got['perplexity'] / want['perplexity'])), 1e-4)

  def test_static_ranges_that_were_calibrated(self):
    workdir = self.target.with_name('static')
    finished = launching.run(
        'quantize', '--config=configs/ptq/rtn_w4a4.py', '--config.align_zero=True', '--config.calibration_windows=8',
        f'--model={self.folder / "model"}', f'--workdir={workdir}', f'--calibration={self.text}', f'--text={self.text}')
    self.assertEqual((finished.code, finished.error), (0, ''))
    finished = launching.run('export', f'--model={workdir}', f'--output={self.target}')
    self.assertEqual((finished.code, finished.error), (0, ''))
    got, want = self._score(self.target), launching.evaluations(workdir)[0]
    self.assertEqual((got['activations'], got['activation_mode']), (4, 'static'))
    self.assertLess(abs(math.log(got['perplexity'] / want['perplexity'])), 1e-4)

  def test_format_of_an_export_changes(self):
    flags = [f'--model={self.workdir}', '--format=gptq_v2', f'--output={self.target}']
    self.assertEqual(launching.run('export', *flags).code, 0)
    other = self.target.with_name('other')
    finished = launching.run('export', f'--model={self.target}', '--format=awq', f'--output={other}')
    self.assertEqual((finished.code, finished.error), (0, ''))
    self.assertEqual(json.loads((other / 'config.json').read_text())['quantization_config']['quant_method'], 'awq')
    self.assertEqual(self._score(other)['method'], 'awq')

  def test_damaged_models_are_refused(self):
    flags = [f'--model={self.workdir}', f'--output={self.target}']
    self.assertEqual(launching.run('export', *flags).code, 0)
    other, scored = self.target.with_name('other'), self.target.with_name('scored')
    export = lambda: launching.run('export', f'--model={self.target}', '--format=gptq_v2', f'--output={other}')
    evaluate = lambda: launching.run(
        'evaluate', f'--model={self.target}', f'--workdir={scored}', f'--text={self.text}')
    file = self.target / 'model.safetensors'
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    finished = export()
    self.assertEqual((finished.code, finished.error), (3, f'{file} is not what was written\n'))
    with open(self.target / 'tokenizer.json', 'a', encoding='utf-8') as opened:
      opened.write('\n')
    finished = evaluate()
    self.assertEqual(
        (finished.code, finished.error), (3, f'{self.target / "tokenizer.json"} is not what was written\n'))
    self.assertFalse(other.exists() or scored.exists())

  def test_quantized_twice_is_refused(self):
    flags = [f'--model={self.workdir}', '--format=gptq_v2', f'--output={self.target}']
    self.assertEqual(launching.run('export', *flags).code, 0)
    again = self.target.with_name('again')
    for model in (self.target, self.workdir):
      finished = launching.run(
          'quantize', *_PTQ, f'--model={model}', f'--calibration={self.text}', f'--workdir={again}')
      self.assertEqual(finished.code, 2)
      self.assertEqual(finished.error, f'{model} is quantized already, by gptq\n')
      self.assertFalse(again.exists())

  @parameterized.named_parameters(
      ('no_output', ['--model={quantized}'], ['--output=DIR']),
      ('format', ['--model={quantized}', '--output={target}', '--format=gguf'], ['gguf', 'compressed-tensors']),
      ('there_already', ['--model=/none', '--output={quantized}'], ['exists already']),
      ('sharded', ['--model={quantized}', '--output={target}', '--fully_sharded'], ['means nothing here']),
      ('float', ['--model={model}', '--output={target}'], ['no integer codes', 'float']),
      ('codes', ['--model={quantized}', '--output={target}', '--format=float'], ['holds codes']))
  def test_refused(self, flags, words):
    finished = launching.run('export', *(flag.format(
        quantized=self.workdir, model=self.folder / 'model', target=self.target) for flag in flags))
    self.assertEqual(finished.code, 2, finished)
    self.assertLen(finished.error.splitlines(), 1)
    for word in words:
      self.assertIn(word, finished.error)
    self.assertFalse(self.target.exists())


if __name__ == '__main__':
  absltest.main()
