"""Tasks: JSON Lines files of questions that a decoder is scored on, each line an example.

  multiple choice   {"context": "2 + 2 =", "choices": [" 3", " 4"], "answer": 1}
  last word         {"text": "... and then he closed the door"}, whose last word is predicted, as in LAMBADA
  continuation      {"context": "...", "continuation": " door"}, the same with the border drawn by hand

Context and what follows it are joined as they stand, so that what follows begins with its blank. Other fields, such as
an identifier, do not matter. All lines of a file are of one kind.

Scores: of multiple choice, how often the likeliest choice is the answer (accuracy), and the likeliest per byte of its
text (normalized accuracy: longer choices are less likely for that alone); else how often the likeliest tokens are the
continuation (accuracy), and the perplexity of the continuations, a continuation and not a token counting as one.
"""

import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxquant import errors
from jaxquant.data import text
from jaxquant.data import tokenizers
from jaxquant.evaluation import likelihood

_SUFFIXES = ('.jsonl', '.jsonl.gz')


class Example(NamedTuple):
  """One question: continuations of a context, of which `answer` is right; one alone is to be predicted."""

  context: str
  continuations: tuple[str, ...]
  answer: int = 0


class Task(NamedTuple):
  """A file of examples, called as it is without its suffix; in each is a choice, or in none."""

  name: str
  choice: bool
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


def encode(task: Task, tokenizer: tokenizers.Tokenizer) -> list[likelihood.Pair]:
  """The tokens of all continuations of a task, one after the other; raises `UserError` naming the task."""
  try:
    return [likelihood.encode_pair(tokenizer, example.context, continuation)
            for example in task.examples for continuation in example.continuations]
  except errors.UserError as error:
    raise errors.UserError(f'task {task.name}: {error}') from error


def metrics(task: Task, likelihoods: Sequence[likelihood.Likelihood]) -> dict[str, Any]:
  """The scores of a task, from the likelihoods of what `encode` gave, in its order.

  Returns:
    `examples`, `accuracy`, `accuracy_error` (standard error of the mean; NaN for one example), and
    `normalized_accuracy` or `perplexity`.
  """
  remaining, right, normalized, nats = iter(likelihoods), [], [], 0.0
  for example in task.examples:
    found = [next(remaining) for _ in example.continuations]
    if task.choice:
      values = np.array([each.nats for each in found])
      sizes = np.array([len(continuation.encode()) for continuation in example.continuations])
      right.append(int(np.argmax(values)) == example.answer)
      normalized.append(int(np.argmax(values / sizes)) == example.answer)
    else:
      right.append(found[0].greedy)
      nats -= found[0].nats
  mean = nats / len(right)
  other = {'normalized_accuracy': float(np.mean(normalized))} if task.choice else {
      'perplexity': math.exp(mean) if mean < 700 else math.inf}
  error = float(np.std(right, ddof=1) / len(right) ** 0.5) if len(right) > 1 else math.nan
  return {'examples': len(right), 'accuracy': float(np.mean(right)), 'accuracy_error': error, **other}


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
  return Task(path.name.partition('.')[0], kinds == {'multiple choice'}, tuple(examples))


def _example(record: dict[str, Any], where: str) -> tuple[Example, str]:
  """The example in a line, and its kind."""
  if 'choices' in record:
    return _choice(record, where), 'multiple choice'
  if 'continuation' in record:
    example = Example(text.string_of(record, where, 'context'), (text.string_of(record, where, 'continuation'),))
    return _not_blank(example, where), 'continuation'
  if 'text' not in record:
    raise errors.UserError(f'{where}: there is no field "choices", "continuation" or "text"; the fields are '
                           f'{", ".join(record) or "none"}')
  context, blank, word = text.string_of(record, where, 'text').rpartition(' ')
  return _not_blank(Example(context, (blank + word,)), where), 'last word'


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
