"""This checkout, for tests: its Python files, what each imports, and processes that run it."""

import ast
import functools
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
from typing import Any

from tests import compiling

ROOT = pathlib.Path(__file__).absolute().parents[1]
PACKAGES = ('jaxquant', 'kernels', 'launch')
FOLDERS = PACKAGES + ('configs', 'tests')


def python_files(*folders: str) -> list[str]:
  """Returns the paths, relative to the checkout, of all Python files below `folders`."""
  return sorted(str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).rglob('*.py'))


@functools.cache
def parse(path: str) -> ast.Module:
  """Returns the syntax tree of a file of the checkout."""
  return ast.parse((ROOT / path).read_text(encoding='utf-8'), path)


def module_file(module: str) -> str | None:
  """Returns the file of a module of this checkout, None for a module from elsewhere."""
  path = module.replace('.', '/')
  for file in (f'{path}.py', f'{path}/__init__.py'):
    if (ROOT / file).exists():
      return file
  return None


def imports(path: str) -> list[tuple[int, str]]:
  """Returns (line, module) for each import anywhere in a file; `from a import b` is a.b where that is a module."""
  found = []
  for node in ast.walk(parse(path)):
    if isinstance(node, ast.Import):
      found += [(node.lineno, alias.name) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      base = '.' * node.level + (node.module or '')
      for alias in node.names:
        full = f'{base}.{alias.name}'
        found.append((node.lineno, full if module_file(full) else base))
  return found


def environment(**variables: str) -> dict[str, str]:
  """The environment of a process that imports this checkout and computes on the CPU."""
  return os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)} | variables


def made_on_eight_devices(file: str) -> Any:
  """Returns what a Python file pickles into the file that it is run with, see `output_on_eight_devices`."""
  with tempfile.TemporaryDirectory() as folder:
    made = pathlib.Path(folder) / 'made.pickle'
    output_on_eight_devices(file, str(made))
    return pickle.loads(made.read_bytes())


def output_on_eight_devices(file: str, argument: str) -> str:
  """Returns what a Python file prints when it is run with an argument by a process that sees eight CPU devices.

  Raises:
    AssertionError: it fails; with what it says of that.
  """
  result = subprocess.run(
      [sys.executable, file, argument], env=environment(XLA_FLAGS=compiling.on_devices(8)), capture_output=True,
      text=True)
  if result.returncode:
    raise AssertionError(result.stderr)
  return result.stdout
