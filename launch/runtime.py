"""What every launcher shares: flags in, and mistakes out as one line with an exit code.

Exit codes: 0 done; 1 a defect of ours, with its traceback; 2 a mistake in flags, configuration or files; 3 a broken
checkpoint; 4 non-finite training; 75 stopped on request, with what is finished saved: start the same command again; 130
interrupted where nothing is saved.
"""

import os
import sys
import traceback
from collections.abc import Callable

from absl import app
from absl import flags
from absl import logging

from jaxquant import errors
from jaxquant import terminal
from launch import processes
from launch import stopping

WORKDIR = flags.DEFINE_string('workdir', None, 'Where results go; the same workdir continues an interrupted run.')

_INTERRUPTED = 130
_BROKEN_PIPE = 141


def launch(main: Callable[[], None]) -> None:
  """Parses flags, starts JAX and runs `main`; the process ends with its exit code."""
  logging.set_verbosity(logging.ERROR)
  code, process = 0, 0
  try:
    _parse(sys.argv)
    process = processes.start()
    main()
    sys.stdout.flush()
  except stopping.Stopped as stop:
    code = stop.exit_code
    if process == 0:
      _clear()
      print(stop, file=sys.stderr, flush=True)
  except KeyboardInterrupt:
    code = _INTERRUPTED
  except BrokenPipeError:
    # As `| head` leaves it; what is still buffered would fail once more at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    code = _BROKEN_PIPE
  except Exception as error:  # pylint: disable=broad-except
    code = _report(error, process)
  sys.exit(code)


def mistake(error: Exception) -> str | None:
  """What a user can mend, a mistake or a lack of memory, said in a line; None for any other error."""
  return str(error) if getattr(error, 'exit_code', None) == errors.UserError.exit_code else _out_of_memory(error)


def _out_of_memory(error: Exception) -> str | None:
  """What XLA could not allocate, in a line; None for any other error."""
  _, found, allocation = str(error).partition('RESOURCE_EXHAUSTED:')
  return 'out of memory: ' + allocation.strip().partition('\n')[0] if found else None


def _parse(argv: list[str]) -> None:
  """Parses all flags; raises `UserError` where absl would raise something of its own, and for what is no flag."""
  app.define_help_flags()
  for module, defined in flags.FLAGS.flags_by_module_dict().items():
    for flag in defined if module.startswith('launch.') else ():
      flags.FLAGS.register_key_flag_for_module(argv[0], flag)  # so that --help shows it
  try:
    arguments = flags.FLAGS(argv)
  except flags.UnrecognizedFlagError as error:
    raise errors.UserError(_unrecognized(error)) from error
  except flags.Error as error:
    raise errors.UserError(str(error)) from error
  except SystemExit:
    sys.exit(0)  # of --help, which absl counts as a failure
  if len(arguments) > 1:
    raise errors.UserError(f'unexpected argument {arguments[1]!r}: flags are --name=value')


def _unrecognized(error: flags.UnrecognizedFlagError) -> str:
  """What to say of a flag that there is not: keys of a configuration are flags once its file is given."""
  if not error.flagname.startswith('config.'):
    return str(error)
  if 'config' in flags.FLAGS:
    return f'--{error.flagname} changes a configuration, and there is none: --config=FILE is needed'
  return f'--{error.flagname} changes a configuration, and this command has none'


def _report(error: Exception, process: int) -> int:
  """Prints a mistake as one line, once for a run that fails in all its processes, or the traceback of a defect."""
  code = getattr(error, 'exit_code', None)
  if exhausted := _out_of_memory(error):
    code, error = errors.UserError.exit_code, exhausted
    if smaller := ' or '.join(f'--{name}' for name in ('length', 'batch_size') if name in flags.FLAGS):
      error += f'; a smaller {smaller} takes less'
  _clear()
  if code is None:
    traceback.print_exception(error)
    return 1
  if process == 0 or not getattr(error, 'collective', False):
    print(f'process {process}: ' * (process > 0) + ' '.join(str(error).split()), file=sys.stderr, flush=True)
  return code


def _clear() -> None:
  """Makes room for the last words where a bar has been left behind."""
  if sys.stderr.isatty():
    sys.stderr.write(terminal.CLEARED)
