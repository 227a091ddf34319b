"""Speed of a step of decoding's attention on one GPU: the kernel beside XLA, and beside a copy of the same bytes.

  python -m launch.benchmark attention [--rows=1,16,64 --slots=128,512 --kv_heads=32,8 --codes] [--output=FILE]

Every row's token stands at the last slot. Times are those of the device's kernels (CUPTI), medians over repetitions,
and caches rotate through copies larger than the L2 cache.
"""

import functools
import itertools

from absl import flags
import jax

from jaxquant import errors
from launch import workdir
from launch.benchmarks import attention_steps
from launch.benchmarks import count_flag
from launch.benchmarks import kernel_programs
from launch.benchmarks import kernel_timing

_ROWS = flags.DEFINE_list('rows', ['1', '16', '64'], 'Rows of the batch, separated by commas.')
_SLOTS = flags.DEFINE_list('slots', ['128', '512', '2048', '8192'], 'Slots of a row in the cache, separated by commas.')
_KV_HEADS = flags.DEFINE_list('kv_heads', ['32', '8'], 'Heads of keys and values, separated by commas.')
_HEADS = count_flag.DEFINE('heads', 32, 'Heads of queries, a multiple of those of keys.')
_CODES = flags.DEFINE_bool('codes', False, 'Caches of codes of 8 bits instead of bfloat16.')
_REPETITIONS = count_flag.DEFINE('repetitions', 10, 'Repetitions; the median counts.')

_COLUMNS = ('mosaic_gpu', 'xla')


def run() -> dict:
  """Measures every size with either implementation."""
  steps = [attention_steps.Step(_HEADS.value, *size, _CODES.value) for size in itertools.product(*map(
      count_flag.integers, (_KV_HEADS, _ROWS, _SLOTS)))]
  if odd := [step.kv_heads for step in steps if step.heads % step.kv_heads]:
    raise errors.UserError(f'--heads={_HEADS.value} is no multiple of {odd[0]} heads of keys')
  environment = workdir.environment()
  if jax.default_backend() != 'gpu':
    raise errors.UserError(f'attention is measured on a GPU; this is {environment["device"]}')
  bandwidth = kernel_timing.copy_bandwidth()
  programs = dict(kernel_programs.compiled(
      ((step, name), functools.partial(step.lowered, name)) for step in steps for name in _COLUMNS))
  print(f'{environment["device"]}: copies at {bandwidth / 1e12:.3f} TB/s, read and written\nmicroseconds')
  print(' '.join(['kv heads', ' rows', 'slots', *(f'{name:>12}' for name in _COLUMNS), '       bytes']))
  rows = []
  for step in steps:
    columns = {name: step.measured(programs[step, name], _REPETITIONS.value) for name in _COLUMNS}
    floor = step.bytes / bandwidth
    rows.append({**step._asdict(), 'columns': columns, 'floor_seconds': floor})
    cells = [kernel_timing.cell(columns[name].get('seconds')) for name in _COLUMNS]
    print(f'{step.kv_heads:8} {step.rows:5} {step.slots:5}', *cells, kernel_timing.cell(floor), flush=True)
  for row, name in itertools.product(rows, _COLUMNS):
    if 'error' in row['columns'][name]:
      print(f'{row["kv_heads"]} x {row["rows"]} x {row["slots"]}: no {name}: {row["columns"][name]["error"]}')
  return {'environment': environment, 'copy_bytes_per_second': bandwidth, 'rows': rows}
