"""What every launcher shares: flags, devices, and mistakes as one line with an exit code.

Exit codes: 0 done; 2 a mistake in flags, configuration or files; 3 a broken checkpoint; 4 non-finite training;
75 stopped on request after a checkpoint, start the same command again.
"""

import os
import re
import sys
import traceback
from collections.abc import Callable

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

from jaxquant import errors

WORKDIR = flags.DEFINE_string('workdir', None, 'Where results go; the same workdir continues an interrupted run.')
_COORDINATOR = flags.DEFINE_string('coordinator_address', None, 'host:port of process 0 of a run of several processes.')
_PROCESSES = flags.DEFINE_integer('num_processes', None, 'Processes of the run.')
_PROCESS = flags.DEFINE_integer('process_id', None, 'Which of them this is, from 0.')
_LOCAL_DEVICES = flags.DEFINE_list('local_device_ids', None, 'Devices of this process; all that it sees by default.')
_CACHE = flags.DEFINE_string(
    'compilation_cache', os.path.join('~', '.cache', 'jaxquant'), 'Where compiled programs are kept; empty: nowhere.')

# Steps of small models are hundreds of short kernels: recorded as graphs, they cost a launch each no more.
_GPU_FLAGS = '--xla_gpu_enable_command_buffer=FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL'


def define_config():
  """The flag `--config=FILE[:argument]`, with `--config.a.b=value` for single keys."""
  return config_flags.DEFINE_config_file('config', None, 'Configuration file.', lock_config=True)


def launch(main: Callable[[], None]) -> None:
  """Parses flags and runs `main`; the process ends with its exit code."""
  logging.set_verbosity(logging.ERROR)
  code = 0
  try:
    arguments = _parse(sys.argv)
    if len(arguments) > 1:
      raise errors.UserError(f'unexpected argument {arguments[1]!r}: flags are --name=value')
    _start_devices()
    main()
  except Exception as error:  # pylint: disable=broad-except
    code = _report(error)
  sys.stdout.flush()
  sys.exit(code)


def _parse(argv: list[str]) -> list[str]:
  """Parses all flags; raises `UserError` where absl or ml_collections would raise something of their own."""
  app.define_help_flags()
  try:
    return flags.FLAGS(argv)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, SyntaxError, ImportError) as error:
    raise errors.UserError(_one_line(error)) from None


def _report(error: Exception) -> int:
  code = getattr(error, 'exit_code', None)
  if code is None:
    traceback.print_exc()
    return 1
  print(_one_line(error), file=sys.stderr, flush=True)
  return code


def _one_line(error: Exception) -> str:
  text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
  text = re.sub(r'\s*\n\s*', ' ', text)
  return text if isinstance(error, (errors.UserError, OSError)) or text else type(error).__name__


def _start_devices() -> None:
  """Sets defaults that must stand before JAX starts, then joins the other processes of the run, if there are any."""
  if '--xla_gpu_enable_command_buffer' not in os.environ.get('XLA_FLAGS', ''):
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {_GPU_FLAGS}'.strip()
  import jax  # pylint: disable=g-import-not-at-top
  if _CACHE.value:
    jax.config.update('jax_compilation_cache_dir', os.path.expanduser(_CACHE.value))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 1.0)
  explicit = _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
  if any(value is not None for value in explicit):
    if any(value is None for value in explicit):
      raise errors.UserError('--coordinator_address, --num_processes and --process_id go together')
    devices = [int(i) for i in _LOCAL_DEVICES.value] if _LOCAL_DEVICES.value else None
    jax.distributed.initialize(*explicit, local_device_ids=devices)
  elif int(os.environ.get('SLURM_NTASKS', '1')) > 1 or int(os.environ.get('OMPI_COMM_WORLD_SIZE', '1')) > 1:
    jax.distributed.initialize()
