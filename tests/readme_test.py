"""What the README shows in Python runs as it stands there."""

import re

from absl.testing import absltest

from tests import source


class ReadmeTest(absltest.TestCase):

  def test_code_blocks_run(self):
    blocks = re.findall(r'```python\n(.*?)```', (source.ROOT / 'README.md').read_text(encoding='utf-8'), re.DOTALL)
    self.assertNotEmpty(blocks)
    for block in blocks:
      exec(compile(block, 'README.md', 'exec'), {})  # pylint: disable=exec-used  # raises where an assertion fails


if __name__ == '__main__':
  absltest.main()
