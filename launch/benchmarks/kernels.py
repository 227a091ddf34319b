"""Speed of quantized matmuls on one GPU, beside what XLA and torch have, and beside the floors of the hardware.

  python -m launch.benchmark kernels [--sizes=4096x4096 --tokens=1,16 --columns=bf16,w4a8] [--output=FILE]
  python -m launch.benchmark kernels --sweep=w4a8 --tuning_file=kernels/data/nvidia_h200.json
  python -m launch.benchmark kernels --limits [--tokens=1,16,64 --columns=w4a8]
  python -m launch.benchmark kernels --rows=FILE --plot=FILE.svg

Times are those of the device's kernels (CUPTI), so that launches do not count, medians over repetitions, and weights
rotate through copies larger than the L2 cache. Everything that is compared runs in the same call. `--plot` draws a
roofline of it; that of an earlier run, whose `--output` is the file of `--rows`, is drawn on any machine. `--limits`
times kernels that leave a part of their work out.
"""

import functools
import itertools
import math
import pathlib

from absl import flags
import jax
import jax.numpy as jnp

from jaxquant import errors
import kernels
from launch import workdir
from launch.benchmarks import count_flag
from launch.benchmarks import kernel_columns
from launch.benchmarks import kernel_limits
from launch.benchmarks import kernel_programs
from launch.benchmarks import kernel_roofline
from launch.benchmarks import kernel_sweep
from launch.benchmarks import kernel_timing
from launch.benchmarks import kernel_torch

_SIZES = flags.DEFINE_list(
    'sizes', ['4096x4096', '14336x4096', '4096x14336'], 'Weights: outputs x inputs, separated by commas.')
_TOKENS = flags.DEFINE_list('tokens', ['1', '16', '64', '256', '2048', '8192'], 'Tokens, separated by commas.')
_COLUMNS = flags.DEFINE_list('columns', [], 'What to measure, or to plot; none: all columns.')
_REPETITIONS = count_flag.DEFINE('repetitions', 10, 'Repetitions; the median counts.')
_DIFFERENCES = flags.DEFINE_bool('differences', True, 'Compare results with the product of the values, too.')
_SWEEP = flags.DEFINE_list('sweep', [], 'Columns whose configurations to try instead.')
_LIMITS = flags.DEFINE_bool('limits', False, 'Time kernels that leave out copies, or products, instead.')
_TUNING_FILE = flags.DEFINE_string('tuning_file', None, 'JSON file of configurations, to which a sweep adds the best.')
_PLOT = flags.DEFINE_string('plot', None, 'SVG file of a roofline to write.')
_ROWS = flags.DEFINE_string('rows', None, 'JSON file of an earlier run, to plot instead of measuring.')

# Of an H100 or H200, dense: 2^12 multiply-adds of int8 a cycle and multiprocessor, at the largest clock.
_INT8_PEAK = 1979e12


def run() -> dict:
  """Measures every column at every size and number of tokens, or takes what was measured, and plots it if asked to."""
  _check_flags()
  result = kernel_roofline.read(pathlib.Path(_ROWS.value)) if _ROWS.value else _measured()
  if _PLOT.value:
    names = _known(_COLUMNS.value, kernel_roofline.columns(result))
    workdir.write_text(pathlib.Path(_PLOT.value), kernel_roofline.draw(result, names))
  return result


def _check_flags() -> None:
  """Refuses, before anything is measured, flags of two things at once, and what could not be plotted afterwards."""
  if (_SWEEP.value or _LIMITS.value) and (_PLOT.value or _ROWS.value):
    raise errors.UserError('--plot and --rows are of measurements, not of a --sweep or of --limits')
  if _SWEEP.value and _LIMITS.value:
    raise errors.UserError('--limits are those of configurations that are in use, not of a --sweep')
  if _ROWS.value and not _PLOT.value:
    raise errors.UserError('--rows=FILE is what to plot; --plot=FILE.svg says where')
  if _PLOT.value and not pathlib.Path(_PLOT.value).absolute().parent.is_dir():
    raise errors.UserError(f'cannot write {_PLOT.value}: there is no such folder')


def _measured() -> dict:
  every = [*kernel_columns.COLUMNS, *kernel_torch.COLUMNS]
  if _SWEEP.value or _LIMITS.value:
    every = list(kernel_columns.TUNED)
  names = _known(_SWEEP.value or _COLUMNS.value or every, every)
  sizes = [_integers(size, 2, '--sizes', 'OUTPUTSxINPUTS') for size in _SIZES.value]
  tokens = [_integers(count, 1, '--tokens', 'a number')[0] for count in _TOKENS.value]
  environment = workdir.environment()
  if jax.default_backend() != 'gpu':
    raise errors.UserError(f'kernels are measured on a GPU; this is {environment["device"]}')
  problems = [kernel_columns.Problem(count, *size) for size in sizes for count in tokens]
  if _SWEEP.value:
    return {'environment': environment,
            'sweep': kernel_sweep.sweep(problems, names, _REPETITIONS.value, _TUNING_FILE.value)}
  bandwidth = kernel_timing.copy_bandwidth()
  if _LIMITS.value:
    return {'environment': environment, 'copy_bytes_per_second': bandwidth,
            'limits': kernel_limits.measure(problems, names, _REPETITIONS.value, bandwidth)}
  ours = [name for name in names if name in kernel_columns.COLUMNS]
  programs = dict(kernel_programs.compiled(
      ((problem, name), functools.partial(kernel_columns.COLUMNS[name].lowered, problem))
      for problem, name in itertools.product(problems, ours)))
  print(f'{environment["device"]}: copies at {bandwidth / 1e12:.3f} TB/s, read and written\nmicroseconds')
  rows = []
  print(' '.join(['outputs', ' inputs', 'tokens', *(f'{name:>12}' for name in names), '       bytes', '         ops']))
  for problem in problems:
    row = _row(problem, names, programs, bandwidth)
    rows.append(row)
    cells = [f'{problem.outputs:7}', f'{problem.inputs:7}', f'{problem.tokens:6}']
    times = [row['columns'][name].get('seconds') for name in names] + [row['floor_seconds'], row['operations_seconds']]
    print(' '.join(cells + list(map(kernel_timing.cell, times))), flush=True)
  activations = _activations(bandwidth)
  for row in rows:
    for name, column in row['columns'].items():
      if 'error' in column:
        print(f'{row["outputs"]} x {row["inputs"]} at {row["tokens"]}: no {name}: {column["error"]}')
  return {'environment': environment, 'copy_bytes_per_second': bandwidth, 'int8_peak': _INT8_PEAK, 'rows': rows,
          'activations': activations}


def _row(problem, names, programs, bandwidth) -> dict:
  columns = {}
  for name in names:
    try:
      if name in kernel_torch.COLUMNS:
        columns[name] = {'seconds': kernel_torch.COLUMNS[name].seconds(problem, _REPETITIONS.value)}
        continue
      column = kernel_columns.COLUMNS[name]
      calls = column.calls(problem, programs[problem, name]())
      seconds = kernel_timing.seconds(calls, _REPETITIONS.value)
      columns[name] = {'seconds': seconds, 'floor_seconds': column.bytes(problem) / bandwidth}
      if _DIFFERENCES.value:
        columns[name]['difference'] = column.difference(problem, calls[0])
    except (NotImplementedError, ValueError, RuntimeError, ImportError) as error:
      columns[name] = kernel_programs.failure(error)
  return {'outputs': problem.outputs, 'inputs': problem.inputs, 'tokens': problem.tokens, 'columns': columns,
          'floor_seconds': kernel_columns.COLUMNS['w4a8'].bytes(problem) / bandwidth,
          'operations_seconds': 2 * math.prod(problem[:3]) / _INT8_PEAK}


# What stands before the quantization of activations and what is asked for, by the name of its row.
_QUANTIZATIONS = {
    'int8': {},
    'uint8, sums of 128': {'symmetric': False, 'group_size': 128},
    'int4': {'bits': 4},
    'int4 packed': {'bits': 4, 'packed': True},
    'int8 static': {'static': True},
    'int8 of an RMSNorm': {'norm': 'rms'},
    'int8 of a LayerNorm': {'norm': 'layer'},
    'int8 of a shift and a scale': {'channels': True},
    'int8 behind a gate': {'gate': 'silu'},
    'int8 of a Hadamard transform of 64': {'hadamard': 64},
    'int8 of a Hadamard transform of 128': {'hadamard': 128},
    'int8 of a Hadamard transform of 4096': {'hadamard': 4096},
}


def _activations(bandwidth: float) -> list[dict]:
  """Quantization of activations beside a copy of as many bytes."""
  tokens, features = 8192, 4096
  drawn = functools.cache(lambda given: jax.random.normal(jax.random.key(0), (tokens, given), jnp.bfloat16))
  rows = []
  for (name, options), implementation in itertools.product(_QUANTIZATIONS.items(), ('xla', 'mosaic_gpu')):
    options = dict(options)
    norm, channels, static = options.pop('norm', None), options.pop('channels', False), options.pop('static', False)
    gate = options.pop('gate', None)
    x = drawn(2 * features if gate else features)
    vector = lambda present: jnp.ones(features) if present else None
    before = kernels.Before(norm, vector(norm), vector(norm == 'layer'), 1e-5, vector(channels), vector(channels),
                            options.pop('hadamard', 1), gate)
    known = kernels.StaticRange(jnp.float32(0.03)) if static else None
    quantize = lambda implementation: functools.partial(
        kernels.quantize_activations, before=before, static=known, implementation=implementation, **options)
    # That of XLA is asked, which runs everywhere.
    results = [a for a in jax.tree.leaves(jax.eval_shape(quantize('xla'), x)) if a.ndim]
    floor = (x.nbytes + sum(a.size * a.dtype.itemsize for a in results)) / bandwidth
    row = {'tokens': tokens, 'features': features, 'name': name, 'implementation': implementation,
           'floor_seconds': floor}
    try:
      call = functools.partial(jax.jit(quantize(implementation)), x)
      row['seconds'] = kernel_timing.seconds([call], _REPETITIONS.value)
    except (NotImplementedError, ValueError, RuntimeError) as error:
      row |= kernel_programs.failure(error)
    rows.append(row)
    found = kernel_timing.cell(row.get('seconds')).strip()
    print(f'{name} of {tokens} x {features}, {implementation}: {found}, a copy of as much '
          f'{kernel_timing.cell(floor).strip()}', flush=True)
  return rows


def _known(names: list[str], every: list[str]) -> list[str]:
  if unknown := [name for name in names if name not in every]:
    raise errors.UserError(f'no column {", ".join(unknown)}; there are {", ".join(every)}')
  return names


def _integers(text: str, count: int, flag: str, form: str) -> list[int]:
  """So many positive integers, with an `x` between them."""
  parts = text.split('x')
  if len(parts) != count or not all(part.isdecimal() and int(part) for part in parts):
    raise errors.UserError(f'{flag}: {text!r} is not {form}, of positive integers')
  return [int(part) for part in parts]
