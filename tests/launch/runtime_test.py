"""How launchers end: what a user can mend is a line, whatever it was raised as."""

import contextlib
import io
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from jaxquant import errors
from jaxquant import terminal
from launch import agreement
from launch import runtime


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

  @parameterized.parameters((errors.UserError('no file'), 'no file\n'), (KeyError('ours'), "KeyError: 'ours'\n"))
  def test_the_last_words_take_the_place_of_a_bar_on_a_terminal(self, error, words):
    for start in (terminal.CLEARED, ''):
      said = io.StringIO()
      said.isatty = lambda start=start: bool(start)
      with contextlib.redirect_stderr(said):
        runtime._report(error, 0)  # pylint: disable=protected-access
      self.assertEqual(said.getvalue(), start + words)

  def test_only_a_mistake_or_a_lack_of_memory_can_be_mended(self):
    for error, reason in ((errors.UserError('no'), 'no'), (agreement.Failed('process 1: no', 2), 'process 1: no'),
                          (RuntimeError('RESOURCE_EXHAUSTED: Out of memory.\nmore'), 'out of memory: Out of memory.'),
                          (agreement.Failed('process 1: torn', 3), None), (RuntimeError('INTERNAL: ptxas'), None)):
      self.assertEqual(runtime.mistake(error), reason)


if __name__ == '__main__':
  absltest.main()
