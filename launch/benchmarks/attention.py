"""Speed of a step of decoding's attention on one GPU: the kernel beside XLA, and beside a copy of the same bytes.

  python -m launch.benchmark attention [--rows=1,16,64 --slots=128,512 --kv_heads=32,8] [--output=FILE]

Every row's token stands at the last slot. Times are those of the device's kernels (CUPTI), medians over repetitions,
and caches rotate through copies larger than the L2 cache.
"""

import functools
import itertools

from absl import flags
import jax
import jax.numpy as jnp

from jaxquant import errors
import kernels
from launch import workdir
from launch.benchmarks import count_flag
from launch.benchmarks import kernel_programs
from launch.benchmarks import kernel_timing

_ROWS = flags.DEFINE_list('rows', ['1', '16', '64'], 'Rows of the batch, separated by commas.')
_SLOTS = flags.DEFINE_list('slots', ['128', '512', '2048', '8192'], 'Slots of a row in the cache, separated by commas.')
_KV_HEADS = flags.DEFINE_list('kv_heads', ['32', '8'], 'Heads of keys and values, separated by commas.')
_HEADS = count_flag.DEFINE('heads', 32, 'Heads of queries, a multiple of those of keys.')
_REPETITIONS = count_flag.DEFINE('repetitions', 10, 'Repetitions; the median counts.')

_DIM = 128
_COLUMNS = ('mosaic_gpu', 'xla')


def run() -> dict:
  """Measures every size with either implementation."""
  sizes = list(itertools.product(*map(count_flag.integers, (_KV_HEADS, _ROWS, _SLOTS))))
  if odd := [kv_heads for kv_heads, *_ in sizes if _HEADS.value % kv_heads]:
    raise errors.UserError(f'--heads={_HEADS.value} is no multiple of {odd[0]} heads of keys')
  environment = workdir.environment()
  if jax.default_backend() != 'gpu':
    raise errors.UserError(f'attention is measured on a GPU; this is {environment["device"]}')
  bandwidth = kernel_timing.copy_bandwidth()
  programs = dict(kernel_programs.compiled(
      ((size, name), functools.partial(_lowered, name, size)) for size in sizes for name in _COLUMNS))
  print(f'{environment["device"]}: copies at {bandwidth / 1e12:.3f} TB/s, read and written\nmicroseconds')
  print(' '.join(['kv heads', ' rows', 'slots', *(f'{name:>12}' for name in _COLUMNS), '       bytes']))
  rows = []
  for size in sizes:
    kv_heads, batch, slots = size
    columns = {name: _measured(programs[size, name], size) for name in _COLUMNS}
    floor = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(_operands(size))) / bandwidth
    rows.append({'kv_heads': kv_heads, 'rows': batch, 'slots': slots, 'columns': columns, 'floor_seconds': floor})
    cells = [f'{1e6 * columns[name]["seconds"]:12.2f}' if 'seconds' in columns[name] else f'{"-":>12}'
             for name in _COLUMNS]
    print(f'{kv_heads:8} {batch:5} {slots:5}', *cells, f'{1e6 * floor:12.2f}', flush=True)
  for row, name in itertools.product(rows, _COLUMNS):
    if 'error' in row['columns'][name]:
      print(f'{row["rows"]} x {row["slots"]}: no {name}: {row["columns"][name]["error"]}')
  return {'environment': environment, 'copy_bytes_per_second': bandwidth, 'heads': _HEADS.value, 'rows': rows}


def _operands(size) -> dict:
  """Shapes of the arguments of `kernels.decode_attention`."""
  (kv_heads, batch, slots), of, dtype = size, jax.ShapeDtypeStruct, jnp.bfloat16
  cache = of((batch, kv_heads, slots, _DIM), dtype)
  return dict(qkv=of((batch, _HEADS.value + 2 * kv_heads, _DIM), dtype), keys=cache, values=cache,
              positions=of((batch,), jnp.int32), angles=(of((batch, _DIM // 2), jnp.float32),) * 2)


def _lowered(name: str, size):
  """The program, which writes into the caches that it is given."""
  attend = lambda operands, keys, values: kernels.decode_attention(
      **operands, keys=keys, values=values, implementation=name)
  operands = _operands(size)
  caches = operands.pop('keys'), operands.pop('values')
  return jax.jit(attend, donate_argnums=(1, 2)).lower(operands, *caches)


def _measured(program, size) -> dict:
  """The seconds of a step, or the error that stands in its way."""
  shapes = _operands(size)
  batch, slots = shapes['qkv'].shape[0], shapes['keys'].shape[2]
  caches = [[jnp.zeros(shapes[name].shape, shapes[name].dtype) for name in ('keys', 'values')]
            for _ in range(kernel_timing.copies(2 * shapes['keys'].size * 2))]
  operands = dict(qkv=jnp.ones(shapes['qkv'].shape, jnp.bfloat16), positions=jnp.full((batch,), slots - 1, jnp.int32),
                  angles=(jnp.ones((batch, _DIM // 2)), jnp.zeros((batch, _DIM // 2))))

  def step(index):
    mixed, *caches[index] = compiled(operands, *caches[index])
    return mixed

  try:
    compiled = program()
    return {'seconds': kernel_timing.seconds(
        [functools.partial(step, index) for index in range(len(caches))], _REPETITIONS.value)}
  except (NotImplementedError, ValueError, RuntimeError) as error:
    return {'error': str(error).splitlines()[0][:200]}
