"""Times of the device's kernels by CUPTI, without launches and gaps."""

from collections.abc import Callable, Sequence
import statistics
from typing import Any

import jax
from jax.experimental.mosaic.gpu import profiler
import jax.numpy as jnp

# Weights rotate through copies of this many bytes: more than twice the L2 cache of an H100 or H200, which has 50 MB.
ROTATED_BYTES = 120_000_000


def seconds(calls: Sequence[Callable[[], Any]], repetitions: int) -> float:
  """The median time of one of `calls`, which do the same with copies of their operands.

  Raises:
    RuntimeError: no kernel was seen, or not the same number for every call.
  """
  once = lambda: jax.block_until_ready([call() for call in calls])
  once()
  kernels = launches(lambda: [once() for _ in range(repetitions)])
  each, rest = divmod(len(kernels), repetitions * len(calls))
  if rest or not each:
    raise RuntimeError(f'{len(kernels)} kernels ran in {repetitions} x {len(calls)} calls')
  times = [sum(time for _, time in kernels[i : i + each]) for i in range(0, len(kernels), each)]
  return statistics.median(times)


def cell(time: float | None) -> str:
  """A column of a table, 12 wide: seconds as microseconds, or a dash for none."""
  return f'{1e6 * time:12.2f}' if time else f'{"-":>12}'


def launches(run: Callable[[], Any]) -> list[tuple[str, float]]:
  """(name, seconds) of every kernel that `run` launches, which waits for them."""
  cupti = profiler.mosaic_gpu_lib._mosaic_gpu_ext  # pylint: disable=protected-access; what profiler.measure calls
  cupti._cupti_init()  # pylint: disable=protected-access
  try:
    run()
  finally:
    kernels = cupti._cupti_get_timings(True)  # pylint: disable=protected-access
  return [(name, milliseconds / 1e3) for name, milliseconds in kernels]


def copies(size: int) -> int:
  """Copies of an operand of `size` bytes that together are larger than the cache."""
  return max(1, min(32, -(-ROTATED_BYTES // size)))


def copy_bandwidth() -> float:
  """Bytes a second that a kernel reads and writes which does nothing else."""
  array = jnp.arange(2**28, dtype=jnp.int32)
  inverted = jax.jit(jnp.bitwise_not)
  return 2 * array.nbytes / seconds([lambda: inverted(array)], 10)
