"""A signal to stop ends a launcher wherever it comes."""

import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized

from tests import source


class StoppingTest(parameterized.TestCase):

  @parameterized.parameters('weakref.finalize(held, stop)', 'type(held).__del__ = lambda self: stop()', 'stop()')
  def test_also_in_a_destructor_and_in_the_callback_of_a_weak_reference(self, held):
    program = f"""
import signal, time, weakref
from launch import runtime, stopping
class Held: pass
def stop(): signal.raise_signal(signal.SIGUSR1)
def main(_):
  held = Held()
  {held}
  del held
  time.sleep(20)
  print('not stopped')
runtime.launch(stopping.stoppable(main))
"""
    ended = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=False,
                           env=source.environment())
    self.assertEqual(ended.stderr, 'SIGUSR1: stopped; the same command goes on behind what is finished\n')
    self.assertEqual((ended.returncode, ended.stdout), (75, ''))


if __name__ == '__main__':
  absltest.main()
