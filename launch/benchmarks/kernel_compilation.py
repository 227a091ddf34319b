"""Compiles kernels for an H200 on a machine that may have none, and reads what ptxas says of them."""

from collections.abc import Callable
import os
import re
import sys
import tempfile
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from jaxquant import errors
from kernels import rule
from kernels import tuning
from kernels.mosaic import configs
from launch.benchmarks import kernel_cases

# By the vendor's data sheet and the tables of compute capability 9.0 in the CUDA C++ Programming Guide.
_H200 = f"""
platform_name: "CUDA"
device_description_str: "NVIDIA H200"
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  core_count: {configs.CORES}
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000
  l2_cache_size: 52428800
  device_memory_size: 141000000000
}}
"""
# What makes Mosaic print what a kernel asks for, and ptxas what it takes.
_VERBOSE = {'MOSAIC_GPU_DUMP_RESOURCES': '1', 'MOSAIC_GPU_DUMP_PTXAS': '1'}
# A line of ptxas that warns of spilled registers has their bytes too, but not those of the stack.
_PATTERN = re.compile(r'smem_scratch_bytes=(?P<shared_memory>\d+)|Used (?P<registers>\d+) registers|stack frame, '
                      r'(?P<spill_stores>\d+) bytes spill stores, (?P<spill_loads>\d+) bytes spill loads')


class Usage(NamedTuple):
  """What one kernel takes: registers of a thread at its start, and bytes."""

  registers: int
  spill_stores: int
  spill_loads: int
  shared_memory: int


def target() -> jax.sharding.Sharding:
  """The sharding of operands on one H200 that need not exist.

  Raises:
    UserError: JAX has no CUDA plugin here.
  """
  try:
    found = topologies.get_topology_desc(platform='cuda', target_config=_H200, topology='1x1x1')
  except NotImplementedError:
    raise errors.UserError(
        'kernels are compiled by the CUDA plugin of JAX, which is not installed here or did not start: install the '
        'extra [cuda13], and set JAX_PLATFORMS=cpu where there is no GPU') from None
  return jax.sharding.SingleDeviceSharding(found.devices[0])


def compiled(case: kernel_cases.Case, sharding: jax.sharding.Sharding, config: Any = None) -> tuple[Any, Usage]:
  """Compiles a kernel.

  Args:
    case: the kernel.
    sharding: what `target` returned.
    config: its configuration, or None for that of `rule.configuration`.

  Returns:
    The configuration, None for a kernel that has none, and what the kernel takes.

  Raises:
    UserError: there is no ptxas, or this version of JAX does not say what kernels take.
    NotImplementedError, jax.errors.JaxRuntimeError: the kernel cannot be lowered, or not be compiled.
  """
  chosen = []

  def choose(problem):
    chosen.append(config or rule.configuration(problem))
    return chosen[-1]

  operands = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), case.operands)
  with tuning.forced(choose):
    try:
      text = _verbosely(lambda: jax.jit(case.call).lower(operands).compile())
    except jax.errors.JaxRuntimeError as error:
      if 'No PTX compilation provider' not in str(error):
        raise
      raise errors.UserError(
          'kernels are compiled by ptxas, which is not found here; the extra [cuda13] brings it') from None
  return chosen[0] if chosen else None, parse(text)


def parse(text: str) -> Usage:
  """What Mosaic and ptxas print of one kernel; raises `UserError` if it is anything but that of one."""
  found = [{name: int(number) for name, number in match.groupdict().items() if number}
           for match in _PATTERN.finditer(text)]
  merged = {name: number for each in found for name, number in each.items()}
  if sum(map(len, found)) != len(Usage._fields) or len(merged) != len(Usage._fields):
    raise errors.UserError(
        f'jax {jax.__version__} does not say of one kernel what registers and shared memory it takes; jax 0.11.2 does')
  return Usage(**merged)


def _verbosely(function: Callable[[], Any]) -> str:
  """What the function and all that it calls, compiled code too, write to the standard output."""
  sys.stdout.flush()
  kept, before = os.dup(1), {name: os.environ.get(name) for name in _VERBOSE}
  os.environ.update(_VERBOSE)
  try:
    with tempfile.TemporaryFile() as file:
      os.dup2(file.fileno(), 1)
      try:
        function()
      finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
      file.seek(0)
      return file.read().decode()
  finally:
    os.close(kept)
    for name, value in before.items():
      os.environ.pop(name) if value is None else os.environ.update({name: value})
