"""Runs a Python file that a flag names, with its mistakes named."""

import os
import runpy
import traceback
from typing import Any

from jaxquant import errors


def call(flag: str, argument: str, function: str) -> Any:
  """What a function of a file returns.

  Args:
    flag: the flag's name.
    argument: FILE[:ARGUMENT], the latter for the function.
    function: its name.

  Raises:
    UserError: there is no such file or function, or it fails.
  """
  file, *rest = argument.split(':', 1)
  if not os.path.isfile(file):
    raise errors.UserError(f'--{flag}={argument}: there is no file {file!r}')
  try:
    return runpy.run_path(file)[function](*rest)
  except (Exception, SystemExit) as error:
    raise errors.UserError(f'--{flag}={argument}: {_reason(error, file, function)}') from error


def _reason(error: Exception, file: str, function: str) -> str:
  """What went wrong and in which line of the file, without a trace."""
  if isinstance(error, KeyError) and error.args == (function,):
    return f'the file defines no {function}()'
  if isinstance(error, SyntaxError):
    return f'line {error.lineno}: {error.msg}'
  lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
           if os.path.abspath(frame.filename) == os.path.abspath(file)]
  text = ' '.join(str(error).split())
  kind = '' if isinstance(error, errors.UserError) else f'{type(error).__name__}: '
  return f'line {lines[-1]}: {kind}{text}' if lines else text
