"""Real text that every machine has: the prose inside the Python standard library.

Documents are made of the source files that come with the running interpreter: the docstrings and the prose among the
comments of each module, and the language reference that `help()` prints (`pydoc_data/topics.py`). Files are parsed,
never imported. It is a little under 3 MB of English about programming: enough to try everything, too little to compare
methods on. Interpreters differ in their text, so numbers measured on it belong to one Python version.
"""

import ast
from collections.abc import Iterator
import functools
import pathlib
import re
import sysconfig
import warnings
import zlib

from jaxquant import errors

_VALIDATION_PERCENT = 8
# Tests are not prose, and installed packages would make the text depend on what else the machine has.
_SKIPPED = frozenset(['test', 'tests', 'idle_test', 'site-packages', 'dist-packages'])
_TOPICS = 'pydoc_data/topics.py'
_PROSE_WORDS = 8
_PROSE_LETTERS = 0.8


def documents(split: str) -> list[str]:
  """Returns the documents of one split, in a fixed order.

  One document is one module or one topic. A hash of its name decides the split, so that it never changes for a given
  name. No paragraph occurs twice, within a split or across them: validation text was not trained on.

  Args:
    split: 'train', or 'validation' (about 8 % of the text).

  Raises:
    errors.UserError: the split is unknown, or the interpreter comes without the source of its library.
  """
  if split not in ('train', 'validation'):
    raise errors.UserError(f"The standard library has the splits 'train' and 'validation', not {split!r}.")
  root = pathlib.Path(sysconfig.get_path('stdlib'))
  found = [text for name, text in _corpus(root) if (split == 'validation') == _is_validation(name)]
  if not found:
    raise errors.UserError(
        f'There is no text for the split {split!r} in the standard library at {root}; install the full Python '
        'library or name text files instead.')
  return found


def _is_validation(name: str) -> bool:
  return zlib.crc32(name.encode()) % 100 < _VALIDATION_PERCENT


@functools.cache
def _corpus(root: pathlib.Path) -> tuple[tuple[str, str], ...]:
  """Returns (name, text) of every document, sorted by source, every paragraph only where it comes first."""
  seen = set()
  corpus = []
  for name, passages in _sources(root):
    paragraphs = []
    for paragraph in re.split(r'\n\s*\n', '\n\n'.join(passages)):
      key = ' '.join(paragraph.split())
      if key and key not in seen:
        seen.add(key)
        paragraphs.append(paragraph.rstrip())
    if paragraphs:
      corpus.append((name, '\n\n'.join(paragraphs) + '\n'))
  return tuple(corpus)


def _sources(root: pathlib.Path) -> Iterator[tuple[str, list[str]]]:
  for path in sorted(root.rglob('*.py')):
    relative = path.relative_to(root)
    if _SKIPPED.intersection(relative.parts):
      continue
    try:
      source = path.read_text(encoding='utf-8')
      with warnings.catch_warnings():
        warnings.simplefilter('ignore', SyntaxWarning)
        warnings.simplefilter('ignore', DeprecationWarning)
        tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError):
      # A file that cannot be read or parsed has no prose to give; the library is full of others.
      continue
    if relative.as_posix() == _TOPICS:
      yield from _topics(tree)
    else:
      docstrings = _docstrings(tree)
      passages = docstrings | _comments(source, set().union(*docstrings))
      yield relative.as_posix(), [passages[lines] for lines in sorted(passages, key=lambda lines: lines.start)]


def _topics(tree: ast.Module) -> Iterator[tuple[str, list[str]]]:
  for node in tree.body:
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
      for key, text in sorted(ast.literal_eval(node.value).items()):
        yield f'{_TOPICS}#{key}', [text]


def _docstrings(tree: ast.Module) -> dict[range, str]:
  """Returns the docstrings of the module and of every class and function in it, by the lines they stand on."""
  owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
  docstrings = {}
  pending = [tree]
  while pending:
    node = pending.pop()
    if isinstance(node, owners) and (docstring := ast.get_docstring(node)):
      docstrings[range(node.body[0].lineno, node.body[0].end_lineno + 1)] = docstring
    # Definitions stand in blocks of statements only, so the expressions, most of a tree, need no visit.
    for block in ('body', 'orelse', 'finalbody', 'handlers', 'cases'):
      pending += getattr(node, block, [])
  return docstrings


def _comments(source: str, quoted: set[int]) -> dict[range, str]:
  """Returns every run of comment lines outside the lines `quoted`, of each the paragraphs that read as prose."""
  comments = {}
  block = []
  for number, line in enumerate(source.split('\n') + [''], start=1):
    line = line.strip()
    if line.startswith('#') and number not in quoted:
      block.append(re.sub('^#+ ?', '', line))
    elif block:
      prose = filter(_is_prose, re.split(r'\n\s*\n', '\n'.join(block)))
      comments[range(number - len(block), number)] = '\n\n'.join(prose)
      block = []
  return comments


def _is_prose(paragraph: str) -> bool:
  """Tells prose from commented-out code, rulers and headings."""
  letters = sum(character.isalpha() or character.isspace() for character in paragraph)
  words = len(re.findall(r'[A-Za-z]{2,}', paragraph))
  return words >= _PROSE_WORDS and letters >= _PROSE_LETTERS * len(paragraph)
