"""The processes and devices of a run, set up before JAX starts: flags, clusters, the cache of compiled programs."""

import os
import socket

from absl import flags

from jaxquant import errors

_COORDINATOR = flags.DEFINE_string('coordinator_address', None, 'host:port of process 0 of a run of several processes.')
_PROCESSES = flags.DEFINE_integer('num_processes', None, 'Processes of the run.', lower_bound=1)
_PROCESS = flags.DEFINE_integer('process_id', None, 'Which of them this is, from 0.', lower_bound=0)
_LOCAL_DEVICES = flags.DEFINE_list('local_device_ids', None, 'Devices of this process; all that it sees by default.')
_CACHE = flags.DEFINE_string(
    'compilation_cache', None,
    'Where compiled programs are kept; empty: nowhere. By default $JAX_COMPILATION_CACHE_DIR or ~/.cache/jaxquant.')
_LEAST_SECONDS = 0.2  # of compilation, for a program to be kept


def start() -> int:
  """Sets defaults that must stand before JAX starts, joins the other processes of the run, and starts JAX.

  The others are those of the flags, or of a Slurm step or a job of Open MPI 4, whose processes JAX finds.

  Returns:
    The number of this process.

  Raises:
    UserError: the flags do not go together, the other processes cannot be found or joined, or there is no such device.
  """
  explicit = _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
  several = any(value is not None for value in explicit)
  if several:
    _check(*explicit)
  elif _LOCAL_DEVICES.value is not None:
    raise errors.UserError('--local_device_ids goes with --coordinator_address, --num_processes and --process_id')
  import jax  # pylint: disable=g-import-not-at-top  # here, so that --help and mistakes in flags are answered at once
  _keep_compiled_programs(jax.config)
  # On a GPU one kernel draws all random numbers, the same ones, instead of one that is compiled for each array.
  jax.config.update('jax_threefry_gpu_kernel_lowering', True)
  try:
    if several:
      devices = [int(i) for i in _LOCAL_DEVICES.value] if _LOCAL_DEVICES.value else None
      jax.distributed.initialize(*explicit, local_device_ids=devices)
    elif (count := _cluster_size()) > 1:
      _join(jax.distributed, count)
    return jax.process_index()
  except RuntimeError as error:
    raise errors.UserError(f'JAX cannot start: {error}') from error


def _check(address: str | None, count: int | None, index: int | None) -> None:
  if None in (address, count, index):
    raise errors.UserError('--coordinator_address, --num_processes and --process_id go together')
  if index >= count:
    raise errors.UserError(f'--process_id={index} is not below --num_processes={count}')
  if not address.rpartition(':')[2].isdigit():
    raise errors.UserError(f'--coordinator_address={address} is not host:port')
  if wrong := [device for device in _LOCAL_DEVICES.value or () if not device.isdigit()]:
    raise errors.UserError(f'--local_device_ids: {wrong[0]!r} is not the number of a device')
  if index == 0:
    try:  # where JAX would crash
      socket.create_server(('', int(address.rpartition(':')[2]))).close()
    except (OSError, OverflowError) as error:
      raise errors.UserError(f'--coordinator_address={address}: the port cannot be opened ({error})') from error


def _join(distributed, count: int) -> None:
  """Joins the processes of a cluster."""
  try:
    distributed.initialize()
  except ValueError as error:  # Open MPI 5 lacks the variables in which JAX looks for the address
    raise errors.UserError(
        f'{count} processes were started, and JAX cannot tell where they meet ({error}): give each of them '
        '--coordinator_address, --num_processes and --process_id') from error


def _cluster_size() -> int:
  """Processes that a cluster has started for this run; 1 inside an allocation whose tasks were not started."""
  tasks = os.environ.get('SLURM_NTASKS') if 'SLURM_STEP_NODELIST' in os.environ else None
  return int(tasks or os.environ.get('OMPI_COMM_WORLD_SIZE') or 1)


def _keep_compiled_programs(config) -> None:
  folder = _CACHE.value
  if folder is None:
    folder = os.environ.get('JAX_COMPILATION_CACHE_DIR', os.path.join('~', '.cache', 'jaxquant'))
  config.update('jax_compilation_cache_dir', os.path.expanduser(folder) or None)
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    # Most of what a calibration compiles takes less than JAX's second, and there are dozens of it.
    config.update('jax_persistent_cache_min_compile_time_secs', _LEAST_SECONDS)
