"""Measures speed. Ratios are taken within one run.

  python -m launch.benchmark NAME [flags of that benchmark] [--output=FILE]

NAME is a file of launch/benchmarks; its flags are listed by --help behind the name. The exit code is 1 where a result
has a `failure`, which is printed.
"""

import functools
import importlib
import pathlib
import sys

from absl import flags

from jaxquant import errors
from launch import runtime

_OUTPUT = flags.DEFINE_string('output', None, 'JSON file to write.')
_BENCHMARKS = ('training', 'ptq', 'kernels', 'attention', 'imports', 'models', 'compilation')


def main(name: str, benchmark) -> None:
  """Runs the benchmark of that name, a module."""
  if benchmark is None:
    asked = f'there is no benchmark {name!r}' if name else 'which benchmark'
    raise errors.UserError(f'{asked}; there are {", ".join(_BENCHMARKS)}')
  from launch import workdir  # pylint: disable=g-import-not-at-top; so that --help needs no JAX
  if _OUTPUT.value and not (folder := pathlib.Path(_OUTPUT.value).parent).is_dir():
    raise errors.UserError(f'--output={_OUTPUT.value}: there is no directory {folder}')
  result = benchmark.run()
  if _OUTPUT.value:
    workdir.write_json(pathlib.Path(_OUTPUT.value), result)
  if result.get('failure'):
    sys.exit(result['failure'])


if __name__ == '__main__':
  NAME = '' if sys.argv[1:2] == [] or sys.argv[1].startswith('-') else sys.argv.pop(1)
  # Its flags are defined by importing it, before any is parsed.
  MODULE = importlib.import_module(f'launch.benchmarks.{NAME}') if NAME in _BENCHMARKS else None
  runtime.launch(functools.partial(main, NAME, MODULE))
