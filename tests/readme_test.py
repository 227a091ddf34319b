"""What the README shows in Python runs as it stands there, from its first line to its last."""

import re

from absl.testing import absltest

from tests import source


def _blocks() -> list[str]:
  return re.findall(r'```python\n(.*?)```', (source.ROOT / 'README.md').read_text(encoding='utf-8'), re.DOTALL)


class ReadmeTest(absltest.TestCase):

  def test_code_blocks_run(self):
    names = {}
    for block in _blocks():
      exec(compile(block, 'README.md', 'exec'), names)  # pylint: disable=exec-used  # raises where an assertion fails
    self.assertIn('result', names)

  def test_a_composition_takes_twelve_lines(self):
    composing = [block for block in _blocks() if 'driver.run(' in block]
    self.assertLen(composing, 2)
    for block in composing:
      self.assertLessEqual(len([line for line in block.splitlines() if line.strip()]), 12)


if __name__ == '__main__':
  absltest.main()
