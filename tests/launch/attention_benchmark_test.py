"""The benchmark of attention: mistakes in flags end it before any work, and every step that is timed runs."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from launch.benchmarks import attention_steps
from launch.benchmarks import kernel_programs
from tests import launching


class FlagsTest(parameterized.TestCase):

  @parameterized.parameters(
      (('--rows=0',), "--rows takes integers from 1 on, not '0'"), (('--slots=many',), "--slots takes integers from 1"),
      (('--kv_heads=',), "--kv_heads takes integers from 1 on, not ''"),
      (('--kv_heads=32,5',), '--heads=32 is no multiple of 5 heads of keys'),
      ((), 'attention is measured on a GPU; this is'))
  def test_mistakes_end_it_before_any_work(self, arguments, message):
    finished = launching.run('benchmark', 'attention', *arguments)
    self.assertEqual(finished.code, 2, finished)
    self.assertStartsWith(finished.error, message)
    self.assertLen(finished.error.splitlines(), 1)


class StepTest(parameterized.TestCase):

  @parameterized.parameters(64, 128)
  def test_a_step_writes_into_caches_of_its_own_and_what_does_not_run_here_is_said(self, slots):
    step, ran = attention_steps.Step(4, 2, 3, slots), []

    def seconds(calls, repetitions):
      # Twice each: what a step gives back is what the next one writes into.
      results = [np.float32(call()) for call in calls for _ in range(repetitions)]
      ran.append((len(calls), results[0].shape, all(np.isfinite(result).all() for result in results)))
      return 1e-6

    names = ('xla', 'mosaic_gpu')
    programs = dict(kernel_programs.compiled((name, lambda name=name: step.lowered(name)) for name in names))
    with (mock.patch.object(attention_steps.kernel_timing, 'copies', lambda size: 2),
          mock.patch.object(attention_steps.kernel_timing, 'seconds', seconds)):
      found = {name: step.measured(programs[name], 2) for name in names}
    self.assertEqual(ran, [(2, (3, 4, 128), True)])
    self.assertEqual(found['xla'], {'seconds': 1e-6})
    self.assertIn('compute capability 9.0', found['mosaic_gpu']['error'])

  def test_bytes_are_those_of_the_cache_and_of_the_tokens(self):
    self.assertEqual(attention_steps.Step(4, 2, 3, 64).bytes,
                     2 * 3 * 2 * 64 * 128 * 2 + 3 * 8 * 128 * 2 + 3 * 4 + 2 * 3 * 64 * 4)


if __name__ == '__main__':
  absltest.main()
