"""Which configuration of a kernel runs a problem: measured ones where there are, else the rule's.

Measured configurations are data, one file for each kind of device: `data/nvidia_h200.json`, written by
`python -m launch.benchmark kernels --sweep`.
"""

from collections.abc import Callable, Iterator
import contextlib
import functools
import json
import logging
import pathlib
from typing import Any

from kernels import dispatch
from kernels import layouts
from kernels import problems
from kernels import rule
from kernels.mosaic import configs

DATA = pathlib.Path(__file__).parent / 'data'
_forced = []


def choose(problem: problems.Problem, device: str):
  """The configuration for a product of codes.

  Args:
    problem: the problem.
    device: the kind of device, as JAX names it, whose measurements count.

  Returns:
    A `configs.Prefill` or a `configs.Decode`. A measured one that does not fit the problem is passed over, as the log
    of `kernels` says once.

  Raises:
    NotImplementedError: what is forced, or else what the rule finds, does not fit the problem.
  """
  found = None if _forced else measured(device).get(key(problem))
  if found is not None:
    if (reason := problems.misfit(problem, found)) is None:
      dispatch.say(logging.INFO, f'{problem}: {found}, as measured')
      return found
    dispatch.say(logging.WARNING, f'measured for {problem}: {found}, which is passed over: {reason}')
  config = (_forced[-1] if _forced else rule.configuration)(problem)
  if reason := problems.misfit(problem, config):
    raise NotImplementedError(f'{config} does not fit {problem}: {reason}')
  dispatch.say(logging.INFO, f'{problem}: {config}, {"as asked for" if _forced else "by the rule"}')
  return config


@contextlib.contextmanager
def forced(configuration: Callable[[problems.Problem], Any]) -> Iterator[None]:
  """Within it, what is traced takes `configuration(problem)`: to measure, and to test one that is not the choice."""
  _forced.append(configuration)
  try:
    yield
  finally:
    _forced.pop()


def key(problem: problems.Problem) -> problems.Problem:
  """What measurements are filed under.

  Tokens count in whole tiles up to the largest, beyond in powers of two; only groups have a body for 4-bit codes.
  """
  tokens, whole = problem.tokens, problem.tokens <= configs.Prefill.MOST_TOKENS
  return problem._replace(tokens=configs.whole_tile(tokens) if whole else 1 << (tokens - 1).bit_length(),
                          four_bits=problem.four_bits and problem.group is not None)


@functools.cache
def measured(device: str) -> dict[problems.Problem, Any]:
  """The measured configurations of a kind of device by `key`; none for a device that was not measured."""
  file = DATA / f'{device.lower().replace(" ", "_")}.json'
  if not file.exists():
    return {}
  entries = json.loads(file.read_text(encoding='utf-8'))['entries']
  return {problems.Problem(**{**entry['problem'], 'layout': layouts.Layout(entry['problem']['layout'])}):
          configs.parse(entry['config']) for entry in entries}
