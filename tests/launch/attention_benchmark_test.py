"""The benchmark of attention: mistakes in flags end it before any work, and every step that is timed runs."""

from unittest import mock

from absl import flags
from absl.testing import absltest
from absl.testing import flagsaver
from absl.testing import parameterized
import jax
import numpy as np

from launch.benchmarks import attention
from tests import launching


class AttentionTest(parameterized.TestCase):

  @parameterized.parameters(
      (('--rows=0',), "--rows takes integers from 1 on, not '0'"), (('--slots=many',), "--slots takes integers from 1"),
      (('--kv_heads=',), "--kv_heads takes integers from 1 on, not ''"),
      (('--kv_heads=32,5',), '--heads=32 is no multiple of 5 heads of keys'),
      ((), 'attention is measured on a GPU; this is'))
  def test_flags(self, arguments, message):
    finished = launching.run('benchmark', 'attention', *arguments)
    self.assertEqual(finished.code, 2, finished)
    self.assertStartsWith(finished.error, message)
    self.assertLen(finished.error.splitlines(), 1)

  def test_every_size_runs_on_caches_of_its_own_and_what_does_not_run_here_is_said(self):
    ran = []

    def seconds(calls, repetitions):
      # Twice each: what a step gives back is what the next one writes into.
      results = [call() for call in calls for _ in range(repetitions)]
      ran.append((len(calls), results[0].shape, bool(np.isfinite(np.float32(results[-1])).all())))
      return 1e-6

    with (mock.patch.object(jax, 'default_backend', lambda: 'gpu'),
          mock.patch.object(attention.kernel_timing, 'copy_bandwidth', lambda: 1e12),
          mock.patch.object(attention.kernel_timing, 'copies', lambda size: 3),
          mock.patch.object(attention.kernel_timing, 'seconds', seconds),
          flagsaver.flagsaver(rows=['2'], slots=['64', '128'], kv_heads=['2'], heads=4, repetitions=2)):
      self.assertTrue(flags.FLAGS.is_parsed())
      result = attention.run()
    self.assertEqual(ran, 2 * [(3, (2, 4, 128), True)])
    sizes = [(row['kv_heads'], row['rows'], row['slots']) for row in result['rows']]
    self.assertEqual(sizes, [(2, 2, 64), (2, 2, 128)])
    for row in result['rows']:
      self.assertEqual(row['columns']['xla'], {'seconds': 1e-6})
      self.assertIn('compute capability 9.0', row['columns']['mosaic_gpu']['error'])
      self.assertGreater(row['floor_seconds'], 2 * 2 * 2 * row['slots'] * 128 * 2 / 1e12)


if __name__ == '__main__':
  absltest.main()
