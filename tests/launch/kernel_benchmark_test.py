"""The benchmark of kernels: mistakes in flags end it before any work, and what cannot run here costs no other row."""

from unittest import mock

from absl.testing import absltest
from absl.testing import flagsaver
from absl.testing import parameterized
import jax

from jaxquant import errors
from launch.benchmarks import kernels
from tests import launching


class KernelsTest(parameterized.TestCase):

  @parameterized.parameters(
      ('--sizes=4096x0', "--sizes: '4096x0' is not OUTPUTSxINPUTS"),
      ('--sizes=1x2x3', "--sizes: '1x2x3' is not OUTPUTSxINPUTS"),
      ('--tokens=16x2', "--tokens: '16x2' is not a number, of positive integers"),
      ('--tokens=-1', "--tokens: '-1' is not a number"),
      ('--columns=w5a8', 'no column w5a8; there are bf16'),
      ('--sweep=bf16', 'no column bf16; there are w8a8, w4a8'),
      ('--limits --columns=reading', 'no column reading; there are w8a8, w4a8'),
      ('--limits --sweep=w4a8', '--limits are those of configurations that are in use'),
      ('--limits --rows=a.json --plot=a.svg', '--plot and --rows are of measurements, not'))
  def test_mistakes_end_it_before_any_work(self, text, message):
    pairs = [flag.removeprefix('--').partition('=') for flag in text.split()]
    with flagsaver.as_parsed(**{name: value or 'true' for name, _, value in pairs}):
      with self.assertRaises(errors.UserError) as caught:
        kernels.run()
    self.assertStartsWith(str(caught.exception), message)
    self.assertLen(str(caught.exception).splitlines(), 1)

  def test_a_mistake_is_a_line_and_a_code(self):
    finished = launching.run('benchmark', 'kernels', '--sizes=4096')
    self.assertEqual(finished.code, 2, finished)
    self.assertStartsWith(finished.error, "--sizes: '4096' is not OUTPUTSxINPUTS, of positive integers")
    self.assertLen(finished.error.splitlines(), 1)

  def test_quantizations_that_do_not_run_here_leave_those_that_do(self):
    times = lambda calls, repetitions: len(jax.tree.leaves(jax.eval_shape(calls[0]))) / repetitions
    with (mock.patch.object(kernels.kernel_timing, 'seconds', times),
          mock.patch.object(kernels, '_REPETITIONS', mock.Mock(value=1e6))):
      rows = kernels._activations(1e12)
    self.assertEqual({row['implementation'] for row in rows}, {'xla', 'mosaic_gpu'})
    for row in rows:
      self.assertGreater(row['floor_seconds'], 3 * 8192 * 4096 / 2 / 1e12)
      if row['implementation'] == 'xla':
        self.assertGreater(row['seconds'], 0)
      else:
        self.assertIn('compute capability 9.0', row['error'])


if __name__ == '__main__':
  absltest.main()
