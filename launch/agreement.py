"""Agreement between the processes of a run: where one fails, all stop, so that none waits for ever."""

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

_MESSAGE_BYTES = 1024


class Failed(Exception):
  """A process of the run failed, hence this one too, with the same exit code; process 0 says why."""

  collective = True

  def __init__(self, message: str, exit_code: int):
    super().__init__(message)
    self.exit_code = exit_code


def agree(function: Callable[[], Any]) -> Any:
  """The result of `function`, which every process calls at this point; if it fails in one, every process fails.

  The first process that failed decides why: if that is process 0, it raises what it met and the others `Failed`, else
  all raise `Failed`. A defect, which has no exit code, is raised where it was met.
  """
  if jax.process_count() == 1:
    return function()
  value, failure = None, None
  try:
    value = function()
  except Exception as error:  # pylint: disable=broad-except
    failure = error
  process, message, code = _first_failure(failure)
  if failure is not None and (process == jax.process_index() == 0 or not hasattr(failure, 'exit_code')):
    raise failure
  if message:
    raise Failed(f'process {process}: {message}', code)
  return value


def of_first(number: int) -> int:
  """The number that process 0 has, which every process asks for at this point."""
  return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def _first_failure(failure: Exception | None) -> tuple[int, str, int]:
  """The first process that failed, why, and its exit code; the message is empty if none did."""
  row = np.zeros(_MESSAGE_BYTES, np.uint8)
  if failure is not None:
    text = (str(failure) or type(failure).__name__).encode()[:_MESSAGE_BYTES - 1]
    row[:len(text) + 1] = [getattr(failure, 'exit_code', 1), *text]
  for process, row in enumerate(multihost_utils.process_allgather(row)):
    if row[0]:
      return process, bytes(row[1:]).rstrip(b'\0').decode(errors='replace'), int(row[0])
  return 0, '', 0
