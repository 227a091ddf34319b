"""Whole runs of the launchers: what they leave, and that interruptions and numbers of processes change no bit of it."""

import json
import pathlib
import signal
import socket
import time

from absl.testing import absltest

from jaxquant.training import restoring
from tests import launching

_BASELINE = "--config.variants=('baseline',)"
_PRECISIONS = "--config.evaluation.precisions=('W16A16',)"


def checksums(workdir: pathlib.Path, step: int = 12, run: str = 'baseline-seed0') -> dict:
  """What the manifest of a checkpoint says of every array, checksums included."""
  return restoring.read_manifest(workdir / 'checkpoints' / run, step)['entries']


def evaluations(workdir: pathlib.Path) -> list[dict]:
  """The evaluations in `results.json`."""
  return json.loads((workdir / 'results.json').read_text())['evaluations']


class RunsTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = pathlib.Path(absltest.get_default_test_tmpdir()) / 'runs'
    cls.folder.mkdir(parents=True, exist_ok=True)
    cls.config = launching.write_files(cls.folder)
    cls.straight = cls.folder / 'straight'
    cls.status, cls.output, cls.error = launching.run(
        'train', f'--config={cls.config}', f'--workdir={cls.straight}')

  def setUp(self):
    super().setUp()
    self.assertEqual(self.status, 0, self.error)

  def test_training_leaves_every_file_and_every_measurement(self):
    for name in ('config.json', 'metrics.jsonl', 'results.json', 'report.html', 'tokenizer.json'):
      self.assertTrue((self.straight / name).is_file(), name)
    measured = {(e['variant'], e['weights'], e['activations'], e['activation_mode']) for e in evaluations(self.straight)}
    precisions = [(16, 16, 'none'), (16, 4, 'static'), (4, 16, 'none'), (4, 4, 'static'), (4, 4, 'dynamic')]
    self.assertEqual(measured, {(v, *p) for v in ('baseline', 'both') for p in precisions})
    for evaluation in evaluations(self.straight):
      self.assertGreater(evaluation['perplexity'], 1)
      self.assertGreater(evaluation['bits_per_byte'], 0)
      self.assertGreater(evaluation['tokens'], 100)
    kinds = {json.loads(line)['kind'] for line in (self.straight / 'metrics.jsonl').read_text().splitlines()}
    self.assertEqual(kinds, {'train', 'validation', 'site', 'weight', 'range'})
    self.assertRegex(self.output, r'step 12/12 100\.0% loss [\d.]+ .*lr [\d.e-]+ tokens/s [\d,]+ ETA \d+s memory [\d.]+G')

  def test_quantized_checkpoint_evaluates_as_it_was_measured(self):
    text = f'--text={self.folder / "validation.txt"}'
    quantized, scored = self.folder / 'quantized', self.folder / 'scored'
    status, _, error = launching.run(
        'quantize', f'--model={self.straight}', '--config=configs/ptq/rtn_w4a4.py', text, f'--workdir={quantized}',
        '--config.calibration_windows=8')
    self.assertEqual(status, 0, error)
    status, _, error = launching.run(
        'evaluate', f'--model={quantized}', text, f'--workdir={scored}', '--implementation=xla')
    self.assertEqual(status, 0, error)
    trained = next(e for e in evaluations(self.straight) if e['variant'] == 'both' and e['weights'] == 4
                   and e['activation_mode'] == 'static')
    for workdir in (quantized, scored):
      self.assertAlmostEqual(evaluations(workdir)[0]['perplexity'], trained['perplexity'], delta=1e-6 * trained['perplexity'])
    status, _, error = launching.run(
        'quantize', f'--model={quantized}', '--config=configs/ptq/rtn_w4a4.py', f'--workdir={self.folder / "twice"}')
    self.assertEqual(status, 2, error)
    self.assertIn('quantized already', error)

  def test_sigterm_and_kill_resume_to_the_same_bits(self):
    for number, expected in ((signal.SIGTERM, 75), (signal.SIGKILL, -signal.SIGKILL)):
      workdir = self.folder / f'stopped-{number}'
      arguments = ('train', f'--config={self.config}', f'--workdir={workdir}', _BASELINE, _PRECISIONS)
      process = launching.start(*arguments)
      metrics = workdir / 'metrics.jsonl'
      while not (metrics.exists() and '"step": 4' in metrics.read_text()):
        self.assertIsNone(process.poll())
        time.sleep(0.01)
      process.send_signal(number)
      error = process.communicate(timeout=120)[1]
      self.assertEqual(process.returncode, expected, error)
      status, _, error = launching.run(*arguments)
      self.assertEqual(status, 0, error)
      self.assertEqual(checksums(workdir), checksums(self.straight))

  def test_two_processes_equal_one_with_two_devices(self):
    with socket.socket() as probe:
      probe.bind(('127.0.0.1', 0))
      address = f'127.0.0.1:{probe.getsockname()[1]}'
    together, apart = self.folder / 'together', self.folder / 'apart'
    common = (f'--config={self.config}', _BASELINE, _PRECISIONS)
    processes = [
        launching.start('train', *common, f'--workdir={apart}', f'--coordinator_address={address}', '--num_processes=2',
                        f'--process_id={i}') for i in range(2)]
    for process in processes:
      error = process.communicate(timeout=300)[1]
      self.assertEqual(process.returncode, 0, error)
    status, _, error = launching.run('train', *common, f'--workdir={together}', devices=2)
    self.assertEqual(status, 0, error)
    self.assertEqual(checksums(apart), checksums(together))
    one, two = (evaluations(workdir)[0]['perplexity'] for workdir in (self.straight, together))
    self.assertAlmostEqual(one, two, delta=1e-3 * one)


if __name__ == '__main__':
  absltest.main()
