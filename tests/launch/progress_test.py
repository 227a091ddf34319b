"""What is said while a launcher works: lines, and on a terminal a bar, which leaves nothing behind."""

import contextlib
import io
import os
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax

from jaxquant import terminal
from jaxquant.calibration import driver
from launch import progress


class _Terminal(io.StringIO):
  """What standard output and standard error are sent to in a terminal."""

  def isatty(self):
    return True

  def lines(self) -> list[str]:
    """What stands on the screen; the last line is where the cursor is."""
    *above, last = self.getvalue().split('\n')
    shown = [line.rpartition(terminal.CLEARED)[2] for line in (*above, last)]
    if any('\r' in line or '\x1b' in line for line in shown):
      raise AssertionError(f'a cursor is moved otherwise: {shown}')
    return shown


@contextlib.contextmanager
def _on(output, error, columns=80):
  """Standard streams in a terminal of so many columns."""
  with (contextlib.redirect_stdout(output), contextlib.redirect_stderr(error),
        mock.patch.dict(os.environ, COLUMNS=str(columns))):
    yield


class BarTest(parameterized.TestCase):

  @parameterized.parameters((0.0, 0), (0.49, 14), (0.5, 15), (1.0, 30))
  def test_is_filled_as_far_as_the_work_is_done(self, fraction, filled):
    screen = _Terminal()
    with _on(screen, screen):
      progress.Printer().bar(fraction, 'step 3/7')
    self.assertEqual(screen.lines(), [f'[{"#" * filled}{"." * (30 - filled)}] step 3/7'])

  def test_gives_way_to_the_next_one_and_to_lines_of_either_stream_which_end(self):
    screen = _Terminal()
    with _on(screen, screen):
      say = progress.Printer()
      say.bar(0.5, 'a text that is longer than those behind it')
      say.bar(0.6, 'step 6')
      self.assertEqual(screen.lines(), [f'[{"#" * 18}{"." * 12}] step 6'])
      say('a line')
      self.assertEqual(screen.lines(), ['a line', ''])
      say('another')
      say.bar(1.0, 'step 10')
      say.error('a warning')
    self.assertEqual(screen.lines(), ['a line', 'another', 'a warning', ''])
    self.assertTrue(screen.getvalue().endswith('a warning\n'))

  def test_never_wraps_since_only_its_last_row_could_be_erased(self):
    screen = _Terminal()
    with _on(screen, screen, columns=50):
      progress.Printer().bar(0.0, 'layers/0 attention/input, attention/o/input')
    self.assertEqual(screen.lines(), [f'[{"." * 30}] layers/0 attenti'])
    self.assertLen(screen.lines()[0], 49)

  def test_a_stream_that_is_no_terminal_gets_lines_alone(self):
    output, error = _Terminal(), io.StringIO()
    with _on(output, error):
      say = progress.Printer()
      say.bar(0.5, 'step 1/2')
      say('a line')
      say.bar(1.0, 'step 2/2')
      say.error('a warning')
    self.assertEqual((output.getvalue(), error.getvalue()), ('a line\n', 'a warning\n'))

  def test_the_first_process_alone_draws(self):
    screen = _Terminal()
    with mock.patch.object(jax, 'process_index', return_value=1), _on(screen, screen):
      say = progress.Printer()
      say.bar(0.5, 'step 1/2')
      say('a line')
    self.assertEqual(screen.getvalue(), '')

  def test_steps_move_it_a_few_times_a_second(self):
    screen, clock = _Terminal(), mock.Mock(return_value=100.0)
    with mock.patch.object(progress.time, 'monotonic', clock), _on(screen, screen):
      steps = progress.Steps(progress.Printer(), 10, 1000, lambda: 0, timed=(4.0, 2))
      for step in range(1, 10):
        clock.return_value += 0.09
        steps.bar(step)
    self.assertEqual(screen.getvalue().count(terminal.CLEARED), 3)
    self.assertEqual(screen.lines(), [f'[{"#" * 21}{"." * 9}] step 7/10 ETA 6s'])


class BlocksTest(absltest.TestCase):

  def report(self):
    """Three blocks, two of which warn of the same."""
    report = progress.blocks(progress.Printer(), lambda record: None)
    for i, text in enumerate(('few tokens', 'few tokens', 'fewer tokens')):
      report(driver.Progress(f'layers/{i}', 'mlp/up', i + 1, 3, 1.0, {}, {f'layers/{i}/mlp/up': text}))

  def test_a_line_for_each_block_and_each_warning_once(self):
    lines, warnings = io.StringIO(), io.StringIO()
    with _on(lines, warnings):
      self.report()
    self.assertEqual([line.split(' ETA')[0] for line in lines.getvalue().splitlines()],
                     ['calibrated layers/0 33%', 'calibrated layers/1 67%', 'calibrated layers/2 100%'])
    self.assertEqual(warnings.getvalue().splitlines(),
                     ['warning: layers/0/mlp/up: few tokens', 'warning: layers/2/mlp/up: fewer tokens'])

  def test_what_is_left_is_told_by_what_this_run_did(self):
    lines = io.StringIO()
    with _on(lines, io.StringIO()):
      report = progress.blocks(progress.Printer(), lambda record: None)
      for i, (done, seconds) in enumerate(((60, 0.5), (61, 30.0), (96, 1000.0))):
        report(driver.Progress(f'layers/{i}', 'restored' if not i else 'up', done, 96, seconds, {}, {}, 60))
    told = [line.partition(' ETA ')[2] for line in lines.getvalue().splitlines()]
    self.assertEqual(told, ['unknown', '17m30s', '0s'])

  def test_a_terminal_keeps_the_same_lines_and_no_bar(self):
    screen, file = _Terminal(), io.StringIO()
    with _on(screen, screen):
      self.report()
    with _on(file, file):
      self.report()
    self.assertEqual(screen.lines(), file.getvalue().split('\n'))
    self.assertIn(f'[{"#" * 20}{"." * 10}] 2/3 layers/1 mlp/up', screen.getvalue())


if __name__ == '__main__':
  absltest.main()
