"""launch.quantize: killed, it continues behind the last finished block to the bits of a straight run."""

import json
import shutil
import signal

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from tests import launching

_LAYERS = 4


class QuantizationTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    model, cls.straight = (launching.folder() / name for name in ('four_layers', 'quantized'))
    cls.flags = ['--config=configs/ptq/rtn_w4a4.py', f'--model={model}', '--config.calibration_windows=8',
                 '--config.weight_pattern=layers/.*|head', f'--text={launching.folder() / "validation.txt"}']
    finished = [
        launching.run('train', launching.config(), f'--workdir={model}', f'--config.model.layers={_LAYERS}',
                      '--config.training.steps=2'),
        launching.run('quantize', *cls.flags, f'--workdir={cls.straight}')]
    if finished[0].code or finished[1].code:
      raise AssertionError(finished)
    cls.output = finished[1].output

  def setUp(self):
    super().setUp()
    self.workdir = launching.folder() / self.id()

  def blocks(self, workdir):
    """The records of blocks."""
    return launching.records(workdir, 'block')

  def assert_as_straight(self):
    """Codes, scales, decisions and evaluations are those of the straight run, with a record for every block."""
    told = [[(record['path'], record['errors']) for record in self.blocks(workdir)]
            for workdir in (self.workdir, self.straight)]
    self.assertEqual(*told)
    self.assertEqual(launching.checksums(self.workdir, 0), launching.checksums(self.straight, 0))
    self.assertEqual(launching.evaluations(self.workdir), launching.evaluations(self.straight))
    self.assertEqual(*((workdir / 'decisions.json').read_bytes() for workdir in (self.workdir, self.straight)))
    self.assertEqual(*({path.name for path in workdir.iterdir()} for workdir in (self.workdir, self.straight)))

  def test_straight_run_says_each_block_once_and_leaves_no_blocks(self):
    lines = [line for line in self.output.splitlines() if line.startswith('calibrated ')]
    self.assertEqual([line.rpartition(' ETA ')[0] for line in lines], [
        *(f'calibrated layers/{i} {share}' for i, share in enumerate(('22%', '44%', '67%', '89%'))),
        'calibrated the head 100%'])
    self.assertFalse((self.straight / 'blocks').exists())

  def test_every_block_leaves_a_record_of_its_time_and_errors(self):
    records = self.blocks(self.straight)
    self.assertEqual([record['step'] for record in records], [1, 2, 3, 4, 5])
    self.assertEqual([record['path'] for record in records], [*(f'layers/{i}' for i in range(_LAYERS)), ''])
    decisions = json.loads((self.straight / 'decisions.json').read_text())
    for record in records:
      self.assertEqual(record['work'], 'calibrated')
      self.assertGreater(record['seconds'], 0)
      inside = f'{record["path"]}/' if record['path'] else 'head'
      made = [entry['round_to_nearest']['relative_error'] for path, entry in decisions.items()
              if path.startswith(inside) and 'round_to_nearest' in entry]
      self.assertLen(made, 7 if record['path'] else 1)
      self.assertAlmostEqual(record['errors']['round_to_nearest']['relative_error'], np.mean(made))
    self.assertNotIn('trained for', (self.straight / 'report.html').read_text())

  def test_memory_is_estimated_before_the_first_block(self):
    memory, calibration = (self.output.index(word) for word in ('\nmemory at least ', '\ncalibrated '))
    self.assertLess(memory, calibration)
    self.assertRegex(
        self.output[memory:], r'^\nmemory at least [\d.]+ MB a device: model [\d.]+ MB, .*streams [\d.]+ MB\n')

  def test_decisions_by_path(self):
    decisions = json.loads((self.straight / 'decisions.json').read_text())
    self.assertIn('<section id="decisions">', (self.straight / 'report.html').read_text())
    self.assertLen(decisions, _LAYERS * (7 + 4) + 1)
    self.assertCountEqual(decisions['layers/3/attention/o/input']['activation_ranges'], ['low', 'high'])
    self.assertBetween(decisions['head']['round_to_nearest']['relative_error'], 1e-4, 1e-1)

  def test_sites_that_a_method_cannot_fold_at_are_refused_before_the_model_is_loaded(self):
    finished = launching.run('quantize', '--config=configs/ptq/smooth_quant_w8a8.py', *self.flags[1:],
                             "--config.site_patterns=('nothing',)", f'--workdir={self.workdir}')
    self.assertEqual(finished.code, 2)
    self.assertRegex(finished.error, "^smooth_quant: nothing can be folded at any site that site_patterns 'nothing'")
    self.assertEqual(finished.output, '')
    self.assertFalse(self.workdir.exists())

  def test_a_finished_workdir_is_of_one_calibration(self):
    text = launching.folder() / 'calibration.txt'
    text.write_text((launching.folder() / 'validation.txt').read_text())
    flags = [*self.flags, f'--workdir={self.workdir}']
    self.assertEqual(launching.run('quantize', *flags, f'--calibration={text}').code, 0)
    read = lambda: [(self.workdir / name).read_bytes() for name in ('results.json', 'jaxquant_manifest.json')]
    made = read()

    def refused(*others):
      finished = launching.run('quantize', *flags, *others)
      self.assertEqual(finished.code, 2, finished)
      self.assertLen(finished.error.splitlines(), 1)
      self.assertEqual(read(), made)
      return finished.error

    self.assertRegex(refused(), r'another configuration: calibration was \[.*calibration.txt.*\] and is now \[\]')
    text.write_text(text.read_text()[::-1])
    self.assertIn('calibrated on other tokens than is there now', refused(f'--calibration={text}'))

  def test_what_is_finished_is_scored_on_other_texts_as_it_is(self):
    other = launching.folder() / 'other.txt'
    other.write_text((launching.folder() / 'validation.txt').read_text()[:999])
    flags = [*self.flags, f'--workdir={self.workdir}']
    self.assertEqual(launching.run('quantize', *flags, f'--text={other}').code, 0)
    scores = lambda: {entry['dataset']: entry['perplexity'] for entry in launching.evaluations(self.workdir)}
    first, saved = scores(), launching.checksums(self.workdir, 0)
    again = launching.run('quantize', *flags, f'--text={launching.folder()}/validation.txt')
    self.assertEqual(again.code, 0, again)
    self.assertNotIn('calibrated ', again.output)
    self.assertRegex(again.output, r'\nrestored .*/checkpoints/')
    self.assertLen(scores(), 2)
    self.assertEqual({name: scores()[name] for name in first}, first)
    self.assertEqual(launching.checksums(self.workdir, 0), saved)
    self.assertIn('other.txt', (self.workdir / 'report.html').read_text())

  @parameterized.parameters(signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
  def test_asked_to_stop_it_says_that_it_is_to_be_started_again(self, number):
    launch = launching.Launch('quantize', *self.flags, f'--workdir={self.workdir}')
    launch.until((self.workdir / 'blocks' / 'layers.0' / '0').exists)
    launch.send(number)
    finished = launch.finish()
    self.assertEqual(finished.code, 75, finished)
    self.assertEqual(
        finished.error, f'{number.name}: stopped; the same command goes on behind what is finished\n')
    finished = launching.run('quantize', *self.flags, f'--workdir={self.workdir}')
    self.assertEqual(finished.code, 0, finished)
    self.assertIn('\nrestored layers/0 22% ETA ', finished.output)

  def test_kill_loses_the_block_under_way_only(self):
    launch = launching.Launch('quantize', *self.flags, f'--workdir={self.workdir}')
    launch.until((self.workdir / 'blocks' / 'layers.1' / '0').exists)
    launch.send(signal.SIGKILL)
    self.assertEqual(launch.finish().code, -signal.SIGKILL)
    self.assertFalse((self.workdir / 'results.json').exists())
    with (self.workdir / 'metrics.jsonl').open('a') as file:
      file.write('{"kind": "blo')  # as a kill may leave it
    damaged = self.workdir.with_name(self.workdir.name + '_damaged')
    shutil.copytree(self.workdir, damaged)

    finished = launching.run('quantize', *self.flags, f'--workdir={self.workdir}')
    self.assertEqual(finished.code, 0, finished)
    self.assertIn('\nrestored layers/0 22% ETA ', finished.output)
    self.assertIn('\nrestored layers/1 44% ETA ', finished.output)
    self.assertIn('\ncalibrated the head 100% ETA 0s\n', finished.output)
    self.assert_as_straight()
    restored = [record for record in self.blocks(self.workdir) if record['work'] == 'restored']
    self.assertEqual([record['path'] for record in restored][:2], ['layers/0', 'layers/1'])
    self.assertNotIn('seconds', restored[0])

    self.workdir = damaged
    for file in (damaged / 'blocks' / 'layers.0').glob('0/params/d/*'):
      file.write_bytes(file.read_bytes()[:-1])
    finished = launching.run('quantize', *self.flags, f'--workdir={damaged}')
    self.assertEqual(finished.code, 0, finished)
    removed, *rest = finished.error.splitlines()
    self.assertStartsWith(removed, f'removed {damaged}/blocks/layers.0, which is damaged and is computed again: ')
    for line in rest:  # if the kill came in the midst of a save
      self.assertIn(', left by a save that did not finish', line)
    self.assertIn('\ncalibrated layers/0 22% ETA ', finished.output)
    self.assertIn('\nrestored layers/1 44% ETA ', finished.output)
    self.assert_as_straight()


if __name__ == '__main__':
  absltest.main()
