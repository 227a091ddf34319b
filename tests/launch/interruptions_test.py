"""A launch that was interrupted, or whose newest checkpoint is damaged, continues to the bits of a straight run."""

import json
import pathlib
import shutil
import signal

from absl.testing import absltest
from absl.testing import parameterized

from jaxquant.training import restoring
from tests import launching

# Then most of the time is spent on saving, and the run is long enough to be interrupted.
_SAVING = '--config.training.save_every=1'


def _flip_a_bit(workdir: pathlib.Path, step: int) -> None:
  """Damages a checkpoint: in its middle the largest file holds the numbers of some kernels."""
  file = max(workdir.glob(f'checkpoints/baseline-seed0/{step}/params/*/d/*'), key=lambda path: path.stat().st_size)
  content = bytearray(file.read_bytes())
  content[len(content) * 3 // 8] ^= 1
  file.write_bytes(content)


def _results(workdir: pathlib.Path) -> dict:
  return json.loads((workdir / 'results.json').read_text())


class InterruptionsTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.straight = launching.folder() / 'straight'
    finished = launching.run('train', launching.config(), f'--workdir={cls.straight}')
    if finished.code:
      raise AssertionError(finished)

  def setUp(self):
    super().setUp()
    self.workdir = launching.folder() / self.id()
    self.flags = ['train', launching.config(), f'--workdir={self.workdir}']

  def assert_as_straight(self):
    """The final checkpoint, the evaluations and the records are those of the straight run, bit for bit."""
    self.assertEqual(launching.checksums(self.workdir), launching.checksums(self.straight))
    self.assertEqual(launching.evaluations(self.workdir), launching.evaluations(self.straight))
    for kind in ('train', 'site', 'weight', 'validation'):
      found = launching.records(self.workdir, kind)
      for record in launching.records(self.straight, kind):
        self.assertEqual(found.count(record), 1, record)

  def seen(self, text: str) -> bool:
    """Whether the metrics hold `text`."""
    metrics = self.workdir / 'metrics.jsonl'
    return metrics.exists() and text in metrics.read_text()

  @parameterized.parameters(signal.SIGTERM, signal.SIGINT)
  def test_request_to_stop_is_followed_after_a_checkpoint(self, number):
    launch = launching.Launch(*self.flags, _SAVING)
    launch.until(lambda: self.seen('"step": 3,'))
    launch.send(number)
    stopped = launch.finish()
    self.assertEqual(stopped.code, 75, stopped)
    step = launching.steps(self.workdir)[-1]
    self.assertEqual(stopped.error, (
        f'{signal.Signals(number).name}: stopping after this step, with a checkpoint\nstopped at step {step} of 12\n'))
    self.assertFalse((self.workdir / 'results.json').exists())
    finished = launching.run(*self.flags, _SAVING)
    self.assertEqual((finished.code, finished.error), (0, ''))
    self.assertIn(f'\ncontinuing at step {step}\n', finished.output)
    self.assert_as_straight()

  def test_kill_during_a_save_loses_that_save_only(self):
    saving = lambda: list(self.workdir.glob('checkpoints/*/*.orbax-checkpoint-tmp*'))
    launch = launching.Launch(*self.flags, _SAVING)
    launch.until(lambda: self.seen('"step": 3,'))
    while True:  # until the launch stands still in a save
      launch.until(saving)
      launch.send(signal.SIGSTOP)
      if saving():
        break
      launch.send(signal.SIGCONT)
    launch.send(signal.SIGKILL)
    self.assertEqual(launch.finish().code, -signal.SIGKILL)
    step = launching.steps(self.workdir)[-1]
    finished = launching.run(*self.flags, _SAVING)
    self.assertEqual(finished.code, 0, finished)
    self.assertRegex(finished.error, r'^removed .*/\d+\.orbax-checkpoint-tmp.*, left by a save that did not finish\n$')
    self.assertIn(f'\ncontinuing at step {step}\n', finished.output)
    self.assert_as_straight()

  def test_damaged_checkpoint_is_named_and_the_one_before_continued(self):
    shutil.copytree(self.straight, self.workdir)
    _flip_a_bit(self.workdir, 12)
    finished = launching.run(*self.flags)
    self.assertEqual(finished.code, 0, finished)
    folder = self.workdir / 'checkpoints' / 'baseline-seed0'
    damaged, using, renamed = finished.error.splitlines()
    self.assertStartsWith(damaged, f'checkpoint step 12 in {folder} is damaged: ')
    self.assertIn('params/', damaged)
    self.assertEqual([using, renamed], ['using checkpoint step 8', f'renamed {folder}/12 to damaged-12'])
    self.assertIn('\ncontinuing at step 8\n', finished.output)
    self.assert_as_straight()
    before = restoring.read_manifest(folder, 8)['metadata']['timed'][0]
    self.assertGreater(_results(self.workdir)['runs'][0]['seconds'], before)
    self.assertGreater(before, 0)

  def test_death_before_the_first_checkpoint_leaves_no_record_twice(self):
    launch = launching.Launch(*self.flags)
    launch.until(lambda: self.seen('"step": 0,'))
    launch.send(signal.SIGKILL)
    self.assertEqual(launch.finish().code, -signal.SIGKILL)
    finished = launching.run(*self.flags)
    self.assertEqual((finished.code, finished.error), (0, ''))
    self.assert_as_straight()

  def test_finished_run_that_is_launched_again_keeps_its_record(self):
    shutil.copytree(self.straight, self.workdir)
    finished = launching.run(*self.flags)
    self.assertEqual((finished.code, finished.error), (0, ''))
    self.assert_as_straight()
    for key in ('seconds', 'tokens_per_second', 'steps', 'tokens'):
      self.assertEqual(_results(self.workdir)['runs'][0][key], _results(self.straight)['runs'][0][key], key)
    self.assertGreater(_results(self.workdir)['seconds'], _results(self.straight)['seconds'])

  def test_results_of_what_is_not_measured_again_yet_stay(self):
    trained = launching.trained()
    shutil.copytree(trained, self.workdir)
    launch = launching.Launch(
        *self.flags, "--config.variants=('baseline','both')", '--config.evaluation.precisions=()')
    launch.until(lambda: '-- both' in launch.output.read_text())
    launch.send(signal.SIGKILL)
    self.assertEqual(launch.finish().code, -signal.SIGKILL)
    for key in ('evaluations', 'runs', 'outlier_summary'):
      found, want = ({(entry['variant'], entry['seed']) for entry in _results(workdir)[key]}
                     for workdir in (self.workdir, trained))
      self.assertEqual(found, want, key)
    self.assertCountEqual(launching.evaluations(self.workdir), launching.evaluations(trained))

  def test_damage_of_all_checkpoints_ends_with_code_3_and_removes_nothing(self):
    shutil.copytree(self.straight, self.workdir)
    for step in (8, 12):
      _flip_a_bit(self.workdir, step)
    finished = launching.run(*self.flags)
    self.assertEqual(finished.code, 3, finished)
    self.assertLen(finished.error.splitlines(), 1, finished.error)
    folder = self.workdir / 'checkpoints' / 'baseline-seed0'
    self.assertStartsWith(finished.error, f'no checkpoint to restore in {folder}; checkpoint step 12 in ')
    self.assertIn('; checkpoint step 8 in ', finished.error)
    self.assertEqual(launching.steps(self.workdir), [8, 12])
    self.assertEqual(launching.records(self.workdir, 'train'), launching.records(self.straight, 'train'))


if __name__ == '__main__':
  absltest.main()
