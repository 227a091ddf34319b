"""Tasks: JSON Lines files of questions that a decoder is scored on, each line an example.

  multiple choice   {"context": "2 + 2 =", "choices": [" 3", " 4"], "answer": 1}
  last word         {"text": "... and then he closed the door"}, whose last word is predicted, as in LAMBADA
  continuation      {"context": "...", "continuation": " door"}, the same with the border drawn by hand
  generation        {"context": "Q: 2 + 2?\\nA:", "answer": "4"}, optionally with "until": ["\\n"], texts that end
                    what is generated, and "tokens": 64, how many are at most; these are the defaults

Context and what follows it are joined as they stand, so that what follows begins with its blank. Other fields, such as
an identifier, do not matter. All lines of a file are of one kind. `evaluation.task_scores` has what is measured.
"""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxquant import errors
from jaxquant.data import text

CHOICE, LAST_WORD, CONTINUATION, GENERATION = 'multiple choice', 'last word', 'continuation', 'generation'
_SUFFIXES = ('.jsonl', '.jsonl.gz')


class Example(NamedTuple):
  """One question.

  Attributes:
    context: what the model reads.
    continuations: the choices; or what is to be predicted or generated, alone.
    answer: which of them is right.
    until: texts that end what is generated.
    tokens: that are generated at most.
  """

  context: str
  continuations: tuple[str, ...]
  answer: int = 0
  until: tuple[str, ...] = ('\n',)
  tokens: int = 64


class Task(NamedTuple):
  """A file of examples of one kind, called as it is without its suffix."""

  name: str
  kind: str
  examples: tuple[Example, ...]


def read(paths: Sequence[str]) -> list[Task]:
  """Reads tasks.

  Args:
    paths: files, or directories whose `.jsonl` files (perhaps compressed, `.jsonl.gz`) are tasks.

  Raises:
    UserError: a file is missing or unreadable, holds no example, or a line is none; a directory holds no such file; two
      tasks have the same name.
  """
  tasks: dict[str, Task] = {}
  for path in map(pathlib.Path, paths):
    files = [path]
    if path.is_dir():
      files = sorted(file for file in path.iterdir() if file.name.endswith(_SUFFIXES))
      if not files:
        raise errors.UserError(f'{path} holds no task: no file is called *.jsonl')
    for file in files:
      task = _read(file)
      if task.name in tasks:
        raise errors.UserError(f'two tasks are called {task.name}; the second is {file}')
      tasks[task.name] = task
  return list(tasks.values())


def _read(path: pathlib.Path) -> Task:
  examples, kinds = [], set()
  for where, record in text.read_records(path):
    made, kind = _example(record, where)
    examples.append(made)
    kinds.add(kind)
    if len(kinds) > 1:
      raise errors.UserError(f'{where}: a {kind}, unlike the lines before it; a task is of one kind')
  if not examples:
    raise errors.UserError(f'{path}: the file holds no example')
  return Task(path.name.removesuffix('.gz').removesuffix('.jsonl'), kinds.pop(), tuple(examples))


def _example(record: dict[str, Any], where: str) -> tuple[Example, str]:
  """The example in a line, and its kind."""
  if 'choices' in record:
    return _choice(record, where), CHOICE
  if 'continuation' in record:
    example = Example(text.string_of(record, where, 'context'), (text.string_of(record, where, 'continuation'),))
    return _not_blank(example, where), CONTINUATION
  if 'answer' in record:
    return _not_blank(_generated(record, where), where), GENERATION
  if 'text' not in record:
    raise errors.UserError(f'{where}: there is no field "choices", "continuation", "answer" or "text"; the fields are '
                           f'{", ".join(record) or "none"}')
  context, blank, word = text.string_of(record, where, 'text').rpartition(' ')
  return _not_blank(Example(context, (blank + word,)), where), LAST_WORD


def _generated(record: dict[str, Any], where: str) -> Example:
  example = Example(text.string_of(record, where, 'context'), (text.string_of(record, where, 'answer'),))
  until, tokens = record.get('until', list(example.until)), record.get('tokens', example.tokens)
  if not isinstance(until, list) or not all(isinstance(end, str) and end for end in until):
    raise errors.UserError(f'{where}: the field "until" is no list of texts')
  if type(tokens) is not int or tokens < 1:
    raise errors.UserError(f'{where}: the field "tokens" is {tokens!r}, not a positive number')
  return example._replace(until=tuple(until), tokens=tokens)


def _choice(record: dict[str, Any], where: str) -> Example:
  choices, answer = record['choices'], record.get('answer')
  if not isinstance(choices, list) or len(choices) < 2:
    raise errors.UserError(f'{where}: the field "choices" is no list of two texts or more')
  if type(answer) is not int or not 0 <= answer < len(choices):
    raise errors.UserError(f'{where}: the field "answer" is {answer!r}, not the place of a choice, from 0 to '
                           f'{len(choices) - 1}')
  texts = tuple(text.as_text(choice, where, 'choices') for choice in choices)
  return _not_blank(Example(text.string_of(record, where, 'context'), texts, answer), where)


def _not_blank(example: Example, where: str) -> Example:
  if not all(continuation.strip() for continuation in example.continuations):
    raise errors.UserError(f'{where}: what is to be predicted is blank')
  return example
