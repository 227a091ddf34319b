"""Runs what a guide shows: its fenced blocks, in the order in which they stand.

  python -m tests.guides GUIDE.md

Blocks of `python` share one namespace of this process, those of `sh` are shells of their own in the working folder. All
other blocks are for the reader: output, files, and commands that need a cluster.
"""

import pathlib
import re
import subprocess
import sys
from typing import NamedTuple

_BLOCK = re.compile(r'^```(\w*)\n(.*?)^```$', re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
  """A fenced block: its language, its content, and the line of the guide that the content begins on."""

  language: str
  content: str
  line: int


def blocks(guide: pathlib.Path) -> list[Block]:
  """The blocks of a guide."""
  text = guide.read_text(encoding='utf-8')
  return [Block(match[1], match[2], text.count('\n', 0, match.start(2)) + 1) for match in _BLOCK.finditer(text)]


def run(guide: pathlib.Path) -> None:
  """Runs the blocks of a guide; raises what the first one raises that fails, with its line in the guide."""
  namespace = {'__name__': 'guide'}
  for block in blocks(guide):
    if block.language == 'python':
      # As many lines in front as there are in the guide, so that a traceback quotes the guide.
      program = compile('\n' * (block.line - 1) + block.content, str(guide), 'exec')
      exec(program, namespace)  # pylint: disable=exec-used
    elif block.language == 'sh':
      sys.stdout.flush()
      if code := subprocess.run(['sh', '-eu', '-c', block.content], check=False).returncode:
        raise RuntimeError(f'{guide.name}:{block.line}: the commands ended with {code}')


if __name__ == '__main__':
  run(pathlib.Path(sys.argv[1]))
