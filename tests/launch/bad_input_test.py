"""A user's mistake gets one line that names the culprit and its exit code, and leaves earlier results alone."""

import fcntl
import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized

from tests import launching


class BadInputTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = pathlib.Path(absltest.get_default_test_tmpdir()) / 'bad_input'
    cls.folder.mkdir(parents=True, exist_ok=True)
    cls.config = launching.write_files(cls.folder)
    (cls.folder / 'empty.txt').write_text('')
    (cls.folder / 'latin.txt').write_bytes('Dvo\u0159\u00e1k '.encode('iso8859-2') * 10)
    (cls.folder / 'short.txt').write_text('Fewer tokens than one batch of them. ' * 3)
    (cls.folder / 'broken.py').write_text('def get_config(:\n')
    (cls.folder / 'file').write_text('not a folder')

  def assert_refused(self, launched, *words, code=2):
    status, _, error = launched
    self.assertEqual(status, code, error)
    self.assertLen(error.strip().splitlines(), 1, error)
    for word in words:
      self.assertIn(word, error)

  @parameterized.named_parameters(
      ('no_config', [], ['--config=FILE']),
      ('missing_config', ['--config=nowhere.py'], ['nowhere.py']),
      ('syntax_error', ['--config={folder}/broken.py'], ['broken.py', 'line 1']),
      ('unknown_flag', ['--config={config}', '--nosuchflag=1'], ['nosuchflag']),
      ('unknown_key', ['--config={config}', '--config.training.stepz=3'], ['stepz', 'training.steps']),
      ('wrong_type', ['--config={config}', '--config.training.steps=many'], ['training.steps', 'many']),
      ('stray_argument', ['--config={config}', 'extra'], ['extra']),
      ('missing_text', ['--config={config}', "--config.data.train=('nowhere.txt',)"], ['nowhere.txt']),
      ('empty_text', ['--config={config}', "--config.data.train=('{folder}/empty.txt',)"], ['empty.txt']),
      ('not_utf8', ['--config={config}', "--config.data.train=('{folder}/latin.txt',)"], ['latin.txt', 'UTF-8']),
      ('too_short', ['--config={config}', "--config.data.train=('{folder}/short.txt',)"], ['tokens', 'batch']),
      ('group_size', ['--config={config}', '--config.ptq.group_size=24'], ['group size 24', 'divide']),
      ('unwritable', ['--config={config}', '--workdir={folder}/file/below'], ['file/below']),
      ('unknown_variant', ['--config={config}', "--config.variants=('best',)"], ['best', 'baseline']),
      ('heads', ['--config={config}', '--config.model.heads=5'], ['heads', '5']),
      ('coordinator_alone', ['--config={config}', '--num_processes=2'], ['num_processes']),
  )
  def test_training_refuses(self, flags, words):
    workdir = self.create_tempdir().full_path
    flags = [flag.format(config=self.config, folder=self.folder) for flag in flags]
    if not any(flag.startswith('--workdir') for flag in flags):
      flags.append(f'--workdir={workdir}')
    self.assert_refused(launching.run('train', *flags), *words)
    self.assertFalse((pathlib.Path(workdir) / 'checkpoints').exists())

  @parameterized.named_parameters(
      ('no_model', 'evaluate', ['--text={folder}/train.txt'], ['--model']),
      ('missing_model', 'evaluate', ['--model=nowhere', '--text={folder}/train.txt'], ['nowhere']),
      ('no_text', 'evaluate', ['--model={folder}'], ['--text']),
      ('not_a_workdir', 'quantize', ['--model={folder}', '--config=configs/ptq/rtn_w4a4.py'], ['config.json']),
  )
  def test_other_launchers_refuse(self, launcher, flags, words):
    flags = [flag.format(folder=self.folder) for flag in flags] + [f'--workdir={self.create_tempdir().full_path}']
    self.assert_refused(launching.run(launcher, *flags), *words)

  def test_workdir_of_another_configuration_is_refused_and_kept(self):
    workdir = pathlib.Path(self.create_tempdir().full_path)
    (workdir / 'config.json').write_text(json.dumps({'name': 'other'}))
    (workdir / 'metrics.jsonl').write_text('{}\n')
    self.assert_refused(
        launching.run('train', f'--config={self.config}', f'--workdir={workdir}'), str(workdir), 'another configuration')
    self.assertEqual(json.loads((workdir / 'config.json').read_text()), {'name': 'other'})

  def test_second_launch_on_a_workdir_is_refused(self):
    workdir = pathlib.Path(self.create_tempdir().full_path)
    with open(workdir / '.lock', 'a') as lock:
      fcntl.flock(lock, fcntl.LOCK_EX)
      self.assert_refused(
          launching.run('train', f'--config={self.config}', f'--workdir={workdir}'), str(workdir), 'another launch')

  def test_non_finite_loss_stops_with_code_4_and_no_checkpoint_of_it(self):
    workdir = pathlib.Path(self.create_tempdir().full_path)
    launched = launching.run(
        'train', f'--config={self.config}', f'--workdir={workdir}', "--config.variants=('baseline',)",
        '--config.optimizer.learning_rate=1e30', '--config.optimizer.clip_norm=1e30')
    self.assert_refused(launched, 'loss', 'step', code=4)
    saved = workdir / 'checkpoints' / 'baseline-seed0'
    self.assertEmpty([path.name for path in saved.glob('*') if path.name.isdigit()])


if __name__ == '__main__':
  absltest.main()
