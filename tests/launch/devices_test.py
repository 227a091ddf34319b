"""The number of devices does not change what a launch makes, and that of processes does not change a bit of it."""

import json
import pathlib
import signal
import socket

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from tests import launching


def _start_both(launcher, *flags) -> list[launching.Launch]:
  """Starts a launcher in two processes of one device."""
  with socket.create_server(('localhost', 0)) as probe:
    address = f'localhost:{probe.getsockname()[1]}'
  return [
      launching.Launch(launcher, *flags, f'--coordinator_address={address}', '--num_processes=2',
                       f'--process_id={index}') for index in range(2)]


def _tell_one(first: launching.Launch, second: launching.Launch) -> launching.Finished:
  """Asks the second process alone to stop; how the first one ends, and as the second one does.

  JAX looks for the notice once a second, so the first one is held up until then.
  """
  first.send(signal.SIGSTOP)
  second.send(signal.SIGTERM)
  second.until(lambda: 'SIGTERM' in second.error.read_text())
  first.send(signal.SIGCONT)
  stopped = first.finish()
  if stopped.code != second.finish().code:
    raise AssertionError((stopped, second.finish()))
  return stopped


def _is_sharded(workdir: pathlib.Path) -> bool:
  """Whether some parameter of the last checkpoint was split over devices."""
  described = json.loads((workdir / 'checkpoints/baseline-seed0/12/params/_sharding').read_text())
  return any(json.loads(sharding)['partition_spec'] for sharding in described.values())


class DevicesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.workdir = launching.folder() / self.id()

  def test_eight_devices_train_like_one(self):
    finished = launching.run('train', launching.config(), f'--workdir={self.workdir}', devices=8)
    self.assertEqual((finished.code, finished.error), (0, ''))
    self.assertIn('; 8 x ', finished.output)
    for kind, key in (('train', 'loss'), ('validation', 'cross_entropy')):
      one, eight = (
          {record['step']: record[key] for record in launching.records(workdir, kind)}
          for workdir in (launching.trained(), self.workdir))
      self.assertEqual(one.keys(), eight.keys())
      np.testing.assert_allclose(list(eight.values()), list(one.values()), rtol=1e-4)

  @parameterized.parameters(False, True)
  def test_two_processes_stop_and_resume_to_the_bits_of_one_with_two_devices(self, fully_sharded):
    together, apart = self.workdir / 'together', self.workdir / 'apart'
    sharded = f'--config.training.fully_sharded={fully_sharded}'
    finished = launching.run('train', launching.config(), sharded, f'--workdir={together}', devices=2)
    self.assertEqual((finished.code, finished.error), (0, ''))

    flags = ['train', launching.config(), sharded, f'--workdir={apart}', '--config.training.save_every=1']
    first, second = _start_both(*flags)
    metrics = apart / 'metrics.jsonl'
    first.until(lambda: metrics.exists() and '"step": 1,' in metrics.read_text())
    stopped, step = _tell_one(first, second), launching.steps(apart)[-1]
    self.assertEqual((stopped.code, stopped.error), (75, f'stopped at step {step} of 12\n'))

    first, second = (launch.finish() for launch in _start_both(*flags))
    self.assertEqual((first.code, first.error, second.code, second.error), (0, '', 0, ''))
    self.assertIn(f'\ncontinuing at step {step}\n', first.output)
    self.assertEqual(launching.checksums(apart), launching.checksums(together))
    self.assertEqual(launching.evaluations(apart), launching.evaluations(together))
    for kind in ('train', 'site', 'weight', 'validation'):
      found = launching.records(apart, kind)
      for record in launching.records(together, kind):
        self.assertEqual(found.count(record), 1, record)
    self.assertEqual((_is_sharded(apart), _is_sharded(together)), (fully_sharded, fully_sharded))

  def test_two_processes_stop_quantizing_and_go_on_to_the_bits_of_one_with_two_devices(self):
    model, together, apart = (self.workdir / name for name in ('model', 'together', 'apart'))
    flags = ['quantize', '--config=configs/ptq/gptq_w4a4.py', f'--model={model}', '--config.calibration_windows=8',
             f'--text={launching.folder() / "validation.txt"}']
    for finished in (
        launching.run('train', launching.config(), '--config.model.layers=4', '--config.training.steps=2',
                      f'--workdir={model}'),
        launching.run(*flags, f'--workdir={together}', devices=2)):
      self.assertEqual(finished.code, 0, finished)

    first, second = _start_both(*flags, f'--workdir={apart}')
    first.until((apart / 'blocks' / 'layers.0' / '0').exists)
    stopped = _tell_one(first, second)
    self.assertEqual((stopped.code, stopped.error), (75, 'stopped; the same command goes on behind what is finished\n'))
    self.assertFalse((apart / 'results.json').exists())

    first, second = (launch.finish() for launch in _start_both(*flags, f'--workdir={apart}'))
    self.assertEqual((first.code, first.error, second.code, second.error), (0, '', 0, ''))
    self.assertIn('\nrestored layers/0 25% ETA ', first.output)
    self.assertEqual(launching.checksums(apart, 0), launching.checksums(together, 0))
    self.assertEqual(launching.evaluations(apart), launching.evaluations(together))

  def test_mistake_that_one_process_meets_ends_both_and_is_said_once(self):
    # Process 0 alone opens the workdir.
    flags = 'train', launching.config(), f'--workdir={launching.trained()}', '--config.optimizer.b1=0.5'
    first, second = (launch.finish() for launch in _start_both(*flags))
    self.assertEqual((first.code, second.code), (2, 2), (first, second))
    self.assertIn('holds a run of another configuration', first.error)
    self.assertLen(first.error.splitlines(), 1, first.error)
    self.assertEqual(second.error, '')


if __name__ == '__main__':
  absltest.main()
