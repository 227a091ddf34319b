"""What the kernels' programs take of an H200, compiled on any machine: registers, spilled bytes, shared memory.

  python -m launch.benchmark compilation [--output=FILE]

Needs the extra [cuda13], and no GPU; where there is none, JAX_PLATFORMS=cpu keeps JAX from looking for one. Every
kernel is compiled for the problems of `kernel_cases`, in the configuration that `kernels.rule` picks, and for those
that an H200 was measured with, in theirs. Registers are those of a thread when its block starts; shared memory is
without barriers. The exit code is 1 if a kernel spills registers to memory or cannot be compiled.
"""

import jax

from kernels import tuning
from kernels.mosaic import configs
from launch import workdir
from launch.benchmarks import kernel_cases
from launch.benchmarks import kernel_compilation
from launch.benchmarks import kernel_programs

_DEVICE = 'NVIDIA H200'


def run() -> dict:
  """Compiles every case; `failure` names how many fail."""
  # A program from the cache says nothing of its kernels.
  jax.config.update('jax_enable_compilation_cache', False)
  sharding, rows = kernel_compilation.target(), []
  print(f'{"":56} registers  spill stores  spill loads  shared memory')
  measured = [(kernel_cases.of_problem(problem), config) for problem, config in tuning.measured(_DEVICE).items()]
  for case, config in [(case, None) for case in kernel_cases.every()] + [
      (case._replace(name=f'{case.name}, as measured'), config) for case, config in measured]:
    try:
      config, usage = kernel_compilation.compiled(case, sharding, config)
    except (NotImplementedError, jax.errors.JaxRuntimeError) as error:
      rows.append({'name': case.name} | kernel_programs.failure(error))
      print(f'{case.name:56} {rows[-1]["error"]}', flush=True)
      continue
    rows.append({'name': case.name, 'config': configs.describe(config) if config else None, **usage._asdict()})
    print(f'{case.name:56} {usage.registers:9} {usage.spill_stores:13} {usage.spill_loads:12} '
          f'{usage.shared_memory:14}  {config or ""}', flush=True)
  spilling = sum(bool(row.get('spill_stores') or row.get('spill_loads')) for row in rows)
  failed = sum('error' in row for row in rows)
  failure = f'{spilling} of {len(rows)} kernels spill, {failed} cannot be compiled' if spilling or failed else None
  return {'environment': workdir.environment(), 'kernels': rows, 'failure': failure}
