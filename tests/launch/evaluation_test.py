"""`launch.evaluate` scores a model as its training did, at any precision, and at the step that is asked for."""

import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from jaxquant.models import config as model_config
from jaxquant.numerics import trees
from jaxquant.training import checkpoints
from launch import models
from launch import settings
from tests import launching
from tests import model_directories

_ALL = ('W16A16', 'W4A16', 'W16A4 static', 'W16A4 dynamic', 'W4A4 static', 'W4A4 dynamic')
_RTN = '--config=configs/ptq/rtn_w4a4.py'


def _perplexities(workdir: pathlib.Path, variant: str) -> dict:
  return {(each['weights'], each['activations'], each['activation_mode']): each['perplexity']
          for each in launching.evaluations(workdir) if each['variant'] == variant}


class EvaluationTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.workdir = launching.folder() / self.id()
    self.text = f'--text={launching.folder() / "validation.txt"}'

  def _run(self, launcher, name, *flags):
    """A launch in the workdir `name` of this test: that workdir."""
    finished = launching.run(launcher, *flags, f'--workdir={self.workdir / name}')
    self.assertEqual((finished.code, finished.error), (0, ''))
    return self.workdir / name

  def test_windows_that_are_lacking_are_said_before_anything_is_scored(self):
    short = launching.folder() / 'two_words.txt'
    short.write_text('two words')
    finished = launching.run(
        'evaluate', f'--model={launching.trained()}', '--variant=baseline', '--precisions=W4A16,W4A4 static',
        f'--calibration={short}', self.text, f'--workdir={self.workdir}')
    self.assertEqual(finished.code, 2)
    self.assertIn('are no window of 16', finished.error)
    self.assertNotIn('perplexity', finished.output)

  def test_the_configuration_of_a_training_counts(self):
    trained = self._run(
        'train', 'trained', launching.config(), "--config.variants=('baseline','both')",
        '--config.evaluation.precisions=()', '--config.ptq.weights=2', '--config.ptq.group_size=16',
        '--config.ptq.weight_pattern=layers/.*/mlp/.*', '--config.ptq.ranges=percentile',
        '--config.ptq.percentile=90.0', '--config.ptq.seed=3', '--config.qat.bits=3',
        "--config.qat.ranges=(('layers/.*/mlp/.*',3.0),)")
    for variant in ('baseline', 'both'):
      scored = self._run('evaluate', variant, f'--model={trained}', f'--variant={variant}', self.text)
      want, got = _perplexities(trained, variant), _perplexities(scored, variant)
      self.assertEqual(list(got), [(16, 16, 'none'), (16, 3, 'static'), (2, 16, 'none'), (2, 3, 'static'),
                                   (2, 3, 'dynamic')])
      self.assertLen(set(got.values()), 5)
      np.testing.assert_allclose([*got.values()], [want[key] for key in got], rtol=1e-6)

  def test_learned_ranges_stay_as_a_clip_where_activations_keep_16_bits(self):
    trained = launching.trained()
    quantized = self._run('quantize', 'quantized', _RTN, f'--model={trained}', self.text, '--config.activations=16',
                          '--config.calibration_windows=8')
    want = _perplexities(trained, 'both')[4, 16, 'none']
    np.testing.assert_allclose(_perplexities(quantized, 'both')[4, 16, 'none'], want, rtol=1e-6)

  def test_an_imported_model_at_every_precision_is_what_quantizing_it_gives(self):
    model = model_directories.write(self.workdir / 'llama')
    scored = self._run('evaluate', 'scored', f'--model={model}', self.text, f'--precisions={",".join(_ALL)}',
                       f'--calibration={launching.folder() / "validation.txt"}')
    got = _perplexities(scored, 'imported')
    self.assertEqual(list(got), [(16, 16, 'none'), (4, 16, 'none'), (16, 4, 'static'), (16, 4, 'dynamic'),
                                 (4, 4, 'static'), (4, 4, 'dynamic')])
    self.assertLen(set(got.values()), 6)
    for mode in ('static', 'dynamic'):
      quantized = self._run('quantize', mode, f'--model={model}', self.text, _RTN, f'--config.activation_mode={mode}',
                            f'--calibration={launching.folder() / "validation.txt"}')
      want, = _perplexities(quantized, 'imported').values()
      np.testing.assert_allclose(got[4, 4, mode], want, rtol=1e-6)

  def test_an_imported_model_needs_a_text_for_static_ranges_only(self):
    model = model_directories.write(self.workdir / 'llama')
    finished = launching.run('evaluate', f'--model={model}', self.text, f'--workdir={self.workdir / "static"}',
                             '--precisions=W4A4 static')
    self.assertEqual(finished.code, 2, finished)
    self.assertEqual(finished.error, f"--calibration=FILE is needed for 'W4A4 static': {model} does not hold what the "
                     'model was trained on\n')
    self.assertFalse((self.workdir / 'static').exists())
    scored = self._run('evaluate', 'scored', f'--model={model}', self.text, '--precisions=W8A16,W16A8 dynamic')
    self.assertLen(_perplexities(scored, 'imported'), 2)

  def test_programs_are_kept_where_the_flag_says(self):
    model, programs = model_directories.write(self.workdir / 'llama'), self.workdir / 'programs'
    self._run('evaluate', 'first', f'--model={model}', self.text, f'--compilation_cache={programs}')
    kept = sorted(path.name for path in programs.iterdir() if path.name.endswith('-cache'))
    self.assertNotEmpty(kept)
    self._run('evaluate', 'second', f'--model={model}', self.text, f'--compilation_cache={programs}')
    self.assertEqual(sorted(path.name for path in programs.iterdir() if path.name.endswith('-cache')), kept)

  def test_weights_that_are_not_finite_are_refused_by_path(self):
    model = model_directories.write(self.workdir / 'llama')
    (model / 'model.safetensors').write_bytes(_with_nan((model / 'model.safetensors').read_bytes()))
    finished = launching.run('evaluate', f'--model={model}', self.text, f'--workdir={self.workdir / "scored"}')
    self.assertEqual(finished.code, 4, finished)
    self.assertRegex(finished.error, r'\Anon-finite values in [\w/]+\n\Z')


class StepTest(parameterized.TestCase):

  def _workdir(self) -> pathlib.Path:
    """Three steps: the second has the smallest validation loss."""
    folder, config = pathlib.Path(self.create_tempdir().full_path), settings.train()
    config.model.update(vocabulary=32, width=16, layers=1, heads=2, feed_forward=16, max_length=16)
    config.training.length = 8
    (folder / 'config.json').write_text(config.to_json())
    params = model_directories.noise(model_config.TransformerConfig.from_dict(config.model.to_dict()))
    saved = checkpoints.Checkpoints(folder / 'checkpoints' / 'both-seed0', keep_newest=3)
    for step, loss in ((1, 3.0), (2, 2.0), (3, 2.5)):
      tree = trees.put(params, 'final_norm/scale', jnp.full(16, float(step)))
      saved.save(step, {'params': tree}, metrics={'cross_entropy': loss})
    saved.close()
    return folder

  def test_newest_best_and_numbered_steps(self):
    workdir = self._workdir()
    for asked, step in (('newest', 3), ('best', 2), ('1', 1)):
      params, description = models.find(workdir, step=asked).load()
      self.assertEqual(float(params['final_norm']['scale'][0]), step)
      self.assertEndsWith(description, f' step {step}')


def _with_nan(content: bytes) -> bytes:
  """A file of tensors whose last number is NaN."""
  return content[:-4] + np.float32(np.nan).tobytes()


if __name__ == '__main__':
  absltest.main()
