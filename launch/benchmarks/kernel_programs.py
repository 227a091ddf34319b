"""Compiles the programs of a benchmark on all cores, before any of them is timed."""

from collections.abc import Callable, Iterable
from concurrent import futures
import functools
import os
from typing import Any


def compiled(lowerings: Iterable[tuple[Any, Callable[[], Any]]]) -> list[tuple[Any, Callable[[], Callable[..., Any]]]]:
  """Lowers one after another, and compiles at the same time.

  Args:
    lowerings: (key, function that lowers, or raises NotImplementedError or ValueError) pairs.

  Returns:
    (key, function that returns the program, or raises what lowering or compiling it raised), when all are compiled.
  """
  programs = []
  with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    for key, lower in lowerings:
      try:
        programs.append((key, pool.submit(lower().compile).result))
      except (NotImplementedError, ValueError) as error:
        programs.append((key, functools.partial(_raise, error)))
  return programs


def failure(error: Exception) -> dict[str, str]:
  """What a result has in place of times where a program was not compiled or did not run: the `error`, in a line."""
  return {'error': str(error).splitlines()[0][:200]}


def _raise(error: Exception) -> None:
  raise error
