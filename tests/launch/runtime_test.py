"""How launchers end: what a user can mend is a line, whatever it was raised as."""

import contextlib
import io
import os
import subprocess
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from jaxquant import errors
from launch import agreement
from launch import runtime
from tests import source


class RuntimeTest(parameterized.TestCase):

  @parameterized.parameters((('length', 'batch_size', 'text'), '; a smaller --length or --batch_size takes less\n'),
                            (('length',), '; a smaller --length takes less\n'), ((), '\n'))
  def test_memory_that_is_not_there_is_said_with_the_flags_that_ask_for_less(self, flags, end):
    said = io.StringIO()
    with mock.patch.object(runtime.flags, 'FLAGS', flags), contextlib.redirect_stderr(said):
      error = RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 1 byte.\nmore')
      code = runtime._report(error, 0)  # pylint: disable=protected-access
    self.assertEqual(code, 2)
    self.assertEqual(said.getvalue(), f'out of memory: Out of memory allocating 1 byte.{end}')

  def test_only_a_mistake_or_a_lack_of_memory_can_be_mended(self):
    for error, reason in ((errors.UserError('no'), 'no'), (agreement.Failed('process 1: no', 2), 'process 1: no'),
                          (RuntimeError('RESOURCE_EXHAUSTED: Out of memory.\nmore'), 'out of memory: Out of memory.'),
                          (agreement.Failed('process 1: torn', 3), None), (RuntimeError('INTERNAL: ptxas'), None)):
      self.assertEqual(runtime.mistake(error), reason)

  @parameterized.parameters('weakref.finalize(held, stop)', 'type(held).__del__ = lambda self: stop()', 'stop()')
  def test_a_signal_ends_the_launcher_wherever_it_comes(self, held):
    program = f"""
import signal, time, weakref
from launch import runtime
class Held: pass
def stop(): signal.raise_signal(signal.SIGUSR1)
def main(stop_together):
  held = Held()
  {held}
  del held
  time.sleep(20)
  print('not stopped')
runtime.launch(runtime.stoppable(main))
"""
    ended = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=False,
                           env=os.environ | {'PYTHONPATH': str(source.ROOT)})
    self.assertEqual(ended.stderr, 'SIGUSR1: stopped; the same command goes on behind what is finished\n')
    self.assertEqual((ended.returncode, ended.stdout), (75, ''))


if __name__ == '__main__':
  absltest.main()
