"""Measures speed. Ratios are taken within one run.

  python -m launch.benchmark NAME [flags of that benchmark] [--output=FILE]

NAME is a file of launch/benchmarks; its flags are listed by --help behind the name.
"""

import functools
import importlib
import pathlib
import sys

from absl import flags

from jaxquant import errors
from launch import runtime

_OUTPUT = flags.DEFINE_string('output', None, 'JSON file to write.')
_BENCHMARKS = ('training', 'ptq', 'kernels', 'imports', 'models')


def main(benchmark) -> None:
  """Runs the benchmark, a module."""
  if benchmark is None:
    raise errors.UserError(f'which benchmark? there are {", ".join(_BENCHMARKS)}')
  from launch import workdir  # pylint: disable=g-import-not-at-top; so that --help needs no JAX
  result = benchmark.run()
  if _OUTPUT.value:
    workdir.write_json(pathlib.Path(_OUTPUT.value), result)


if __name__ == '__main__':
  NAME = sys.argv.pop(1) if len(sys.argv) > 1 and sys.argv[1] in _BENCHMARKS else None
  # Its flags are defined by importing it, before any is parsed.
  runtime.launch(functools.partial(main, NAME and importlib.import_module(f'launch.benchmarks.{NAME}')))
