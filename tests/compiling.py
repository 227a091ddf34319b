"""How tests have XLA compile: fast, since most of their time goes into that, and their programs run for a moment.

Without LLVM's optimizations; a program in one piece, since no core is left that could compile others beside it; and by
the emitters of loops that XLA had before it lowered every fusion through MLIR, whose passes took more than half the
time of a compilation. What does not know the last option ignores it.
"""

UNOPTIMIZED = '--xla_backend_optimization_level=0'  # by the emitters that users have
FAST = (f'{UNOPTIMIZED} --xla_cpu_parallel_codegen_split_count=1 '
        '--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters')


def on_devices(count: int) -> str:
  """Returns the value of XLA_FLAGS for a process that sees `count` virtual CPU devices and compiles fast."""
  return f'--xla_force_host_platform_device_count={count} {FAST}'
