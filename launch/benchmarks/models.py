"""Speed of whole models on one device: prefill and decoding of a decoder with generated weights, column by column.

  python -m launch.benchmark models [--columns=bf16,w4a4 --batches=1,16 --contexts=2048 --layers=32 ...] [--output=FILE]

Decoding fills the last --steps slots of a cache of a context, and is timed twice: as a burst of all steps in one
program, and as `launch.generate` goes on by default, one call a token, whose result is read before the next. All
columns of a case take turns within one run, so that ratios do not suffer from clocks that drift; medians count. With
--kernels each prefill and burst runs once more, and the kernels that the device runs for it are listed (CUPTI).
"""

from collections.abc import Callable
import itertools
import statistics
import time
from typing import Any, NamedTuple

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.evaluation import generation
from jaxquant.models import config as model_config
from jaxquant.models import decoding
from launch import scoring
from launch import workdir
from launch.benchmarks import count_flag
from launch.benchmarks import kernel_programs
from launch.benchmarks import kernel_timing
from launch.benchmarks import model_columns
from launch.benchmarks import model_kernels

# LLaMA-7B (arXiv:2302.13971) and LLaMA 3 8B (arXiv:2407.21783).
_SHAPES = {
    '7b': dict(vocabulary=32_000, width=4096, layers=32, heads=32, kv_heads=32, feed_forward=11_008),
    '8b': dict(vocabulary=128_256, width=4096, layers=32, heads=32, kv_heads=8, feed_forward=14_336),
}

_SHAPE = flags.DEFINE_enum('shape', '7b', sorted(_SHAPES), 'Shape of the model, but for what the next flags say.')
_SIZES = {name: count_flag.DEFINE(name, None, f'{text}; by default as --shape has it.')
          for name, text in {
              'vocabulary': 'Tokens', 'width': 'Width', 'layers': 'Blocks', 'heads': 'Query heads',
              'kv_heads': 'Heads of keys and values', 'feed_forward': 'Hidden features of the MLP'}.items()}
_COLUMNS = flags.DEFINE_list('columns', ['bf16', 'w8a8', 'w4a16', 'w4a8', 'w4a4'],
                             f'What to measure, of {", ".join(model_columns.COLUMNS)}; ratios are to bf16.')
_BATCHES = flags.DEFINE_list('batches', ['1', '16', '64'], 'Rows that are decoded at once.')
_CONTEXTS = flags.DEFINE_list('contexts', ['2048'], 'Slots of a row in the cache that decoding fills.')
_PROMPT = flags.DEFINE_integer('prompt', 2048, 'Tokens of the prefill, of one row; 0: none.', lower_bound=0)
_STEPS = count_flag.DEFINE('steps', 64, 'Tokens of a row to decode in each measurement.')
_CALLS = flags.DEFINE_list('calls', ['1'], 'Rows that are decoded at once one call a token, too; may be empty.')
_REPETITIONS = count_flag.DEFINE('repetitions', 5, 'Repetitions; the median counts.')
_KERNELS = flags.DEFINE_bool('kernels', False, 'List the kernels of an evaluation by name, too; needs a GPU.')
_IMPLEMENTATION = flags.DEFINE_enum(
    'implementation', 'auto', ('xla', 'auto', 'mosaic_gpu'), 'How codes meet codes, see launch.generate.')


class _Case(NamedTuple):
  """What is timed.

  Attributes:
    kind: `prefill`, `burst` or `calls`; the last two decode.
    batch: rows.
    context: tokens of a prefill, or slots of a row in the cache.
  """

  kind: str
  batch: int
  context: int

  @property
  def steps(self) -> int:
    """Evaluations of the model in one measurement."""
    return 1 if self.kind == 'prefill' else _STEPS.value

  @property
  def tokens(self) -> int:
    """Tokens of an evaluation."""
    return self.batch * (self.context if self.kind == 'prefill' else 1)


def run() -> dict[str, Any]:
  """Times every case in every column."""
  environment = workdir.environment()
  names, cases = _columns(), _cases()
  if _KERNELS.value and jax.default_backend() != 'gpu':
    raise errors.UserError(f'--kernels listens to a GPU; this is {environment["device"]}')
  config = _config(max(case.context for case in cases))
  print(f'{environment["device"]}: width {config.width}, {config.layers} blocks, feed-forward {config.feed_forward}, '
        f'{config.heads} heads, {config.kv_heads} of keys and values, vocabulary {config.vocabulary}')
  models = {}
  for name in names:
    models[name] = jax.block_until_ready(
        model_columns.prepared(config, model_columns.COLUMNS[name], _IMPLEMENTATION.value))
    print(f'{name}: {scoring.stored_bytes(models[name]) / 1e9:.3f} GB of weights', flush=True)
  rows = []
  for case in cases:
    for name, found in _measured(config, case, models).items():
      rows.append({**case._asdict(), 'column': name, **found,
                   'weight_bytes': scoring.stored_bytes(models[name]), 'bytes': _bytes(config, case, models[name])})
      print(f'{case.kind} of {case.batch} x {case.context}, {name}: {_described(found)}', flush=True)
  # Behind the rest: what listens to the device's events may slow down launches.
  for row in rows if _KERNELS.value else ():
    if 'seconds' in row and row['kind'] != 'calls':
      _add_kernels(config, _Case(row['kind'], row['batch'], row['context']), models[row['column']], row)
  models.clear()
  bandwidth = kernel_timing.copy_bandwidth() if jax.default_backend() == 'gpu' else None
  _complete(rows, bandwidth)
  _print(rows, names, bandwidth)
  return {'environment': environment, 'model': config.to_dict(), 'implementation': _IMPLEMENTATION.value,
          'steps': _STEPS.value, 'copy_bytes_per_second': bandwidth, 'rows': rows}


def _columns() -> list[str]:
  every = list(model_columns.COLUMNS)
  if unknown := [name for name in _COLUMNS.value if name not in every]:
    raise errors.UserError(f'no column {", ".join(unknown)}; there are {", ".join(every)}')
  return _COLUMNS.value


def _cases() -> list[_Case]:
  prefill = [_Case('prefill', 1, _PROMPT.value)] if _PROMPT.value else []
  contexts = count_flag.integers(_CONTEXTS, least=_STEPS.value + 1)  # with a token before those that are decoded
  calls = count_flag.integers(_CALLS) if _CALLS.value else []
  return prefill + [_Case(kind, *case) for kind, batches in (('burst', count_flag.integers(_BATCHES)), ('calls', calls))
                    for case in itertools.product(batches, contexts)]


def _config(length: int) -> model_config.TransformerConfig:
  given = {name: flag.value for name, flag in _SIZES.items() if flag.value is not None}
  if 'heads' in given:  # as many of keys and values, unless told otherwise
    given.setdefault('kv_heads', given['heads'])
  return model_config.TransformerConfig(**(_SHAPES[_SHAPE.value] | given), max_length=length)


def _measured(config, case: _Case, models: dict[str, Any]) -> dict[str, dict[str, Any]]:
  """By column: seconds of each repetition, of their median, and of the first one, which compiles; or the error."""
  found, held = {}, {}  # the cache of the last measurement by what it holds, one at a time

  def timed(name):
    params = models[name]
    kind = jax.tree.structure(jax.eval_shape(lambda: decoding.empty(params, config, case.batch, case.context)))
    cache = held.pop(kind, None)
    held.clear()
    seconds, held[kind] = _timed(
        config, case, params, cache or model_columns.filled_cache(params, config, case.batch, case.context))
    return seconds

  for name in models:
    try:
      seconds = timed(name)
    except RuntimeError as error:  # memory that does not suffice, and what a cache was given for
      found[name] = kernel_programs.failure(error)
      held.clear()
    else:
      found[name] = {'first_seconds': seconds, 'times': []}
  running = {name: column['times'] for name, column in found.items() if 'times' in column}
  for _, (name, times) in itertools.product(range(_REPETITIONS.value), running.items()):
    times.append(timed(name) / case.steps)
  for name, times in running.items():
    found[name]['seconds'] = statistics.median(times)
    found[name]['tokens_per_second'] = case.tokens / found[name]['seconds']
  return found


def _timed(config, case: _Case, params, cache: decoding.Cache) -> tuple[float, decoding.Cache]:
  """Seconds of one measurement, until its tokens are read; and the cache, which it had for itself."""
  options = dict(config=config, sampling=generation.Sampling(), implementation=_IMPLEMENTATION.value)
  key = jax.random.key(0)
  tokens = jax.random.randint(key, (case.batch, case.context), 0, config.vocabulary, jnp.int32)
  before = 0 if case.kind == 'prefill' else case.context - case.steps
  cache = cache._replace(lengths=jnp.full(case.batch, before, jnp.int32))
  chosen, counts = tokens[:, -1], np.full(case.batch, case.context, np.int32)
  jax.block_until_ready((tokens, chosen, cache))
  started = time.monotonic()
  if case.kind == 'prefill':
    chosen, cache = generation.begin(params, cache, tokens, counts, key, **options)
  elif case.kind == 'burst':
    chosen, _, cache = generation.advance(params, cache, chosen, key, np.int32(1), steps=case.steps, **options)
  else:
    for index in range(case.steps):
      made, chosen, cache = generation.advance(params, cache, chosen, key, np.int32(index), steps=1, **options)
      np.asarray(made)
  np.asarray(chosen)
  return time.monotonic() - started, cache


def _add_kernels(config, case: _Case, params, row: dict[str, Any]) -> None:
  """Adds `kernels` to the row of a case that has run, and prints them."""
  cache = model_columns.filled_cache(params, config, case.batch, case.context)
  found = model_kernels.by_name(kernel_timing.launches(lambda: _timed(config, case, params, cache)), case.steps)
  row['kernels'] = [kernel._asdict() for kernel in found]
  print(f'\n{case.kind} of {case.batch} x {case.context}, {row["column"]}: {1e6 * row["seconds"]:.1f} microseconds\n'
        f'{model_kernels.table(found)}', flush=True)


def _bytes(config, case: _Case, params) -> int:
  """What an evaluation has to move: all weights but the embedding's, of which it reads rows, and the cache, whole."""
  table = params['embedding']['kernel']
  rows = case.tokens * table.nbytes // len(table)
  cache = jax.eval_shape(lambda: decoding.empty(params, config, case.batch, case.context).layers)
  return scoring.stored_bytes(params) - table.nbytes + rows + scoring.stored_bytes(cache)


def _complete(rows: list[dict[str, Any]], bandwidth: float | None) -> None:
  """Adds floors, where the bandwidth is known, and what bf16 takes over what each column does, where both ran."""
  plain = {(row['kind'], row['batch'], row['context']): row for row in rows if row['column'] == 'bf16'}
  for row in rows:
    row['floor_seconds'] = row['bytes'] / bandwidth if bandwidth else None
    other = plain.get((row['kind'], row['batch'], row['context']), {})
    row['ratio'] = row['floor_ratio'] = None
    if 'times' in row and 'times' in other:
      # Within a repetition: clocks drift between repetitions by more than columns may differ.
      row['ratio'] = statistics.median(theirs / time for theirs, time in zip(other['times'], row['times']))
    if other:
      row['floor_ratio'] = other['bytes'] / row['bytes']


def _described(found: dict[str, Any]) -> str:
  if 'error' in found:
    return found['error']
  return (f'{1e3 * found["seconds"]:.3f} ms, {found["tokens_per_second"]:,.1f} tokens/s; first after '
          f'{found["first_seconds"]:.1f} s')


def _print(rows: list[dict[str, Any]], names: list[str], bandwidth: float | None) -> None:
  """A table for each number: cases down, columns across."""
  print('\ncopies at ' + (f'{bandwidth / 1e12:.3f} TB/s, read and written' if bandwidth else 'a speed that is measured '
                          'on GPUs only, so that there are no floors'))
  figures: dict[str, Callable[[dict[str, Any]], float | None]] = {
      'tokens per second': lambda row: row.get('tokens_per_second'),
      'milliseconds of a prefill or a step': lambda row: 1e3 * row['seconds'] if 'seconds' in row else None,
      'milliseconds of a copy of the bytes': lambda row: 1e3 * row['floor_seconds'] if row['floor_seconds'] else None,
      'times as fast as bf16': lambda row: row['ratio'],
      'times as few bytes as bf16': lambda row: row['floor_ratio'],
  }
  for title, figure in figures.items():
    print(f'\n{title:36}' + ''.join(f'{name:>16}' for name in names))
    for key, group in itertools.groupby(rows, lambda row: (row['kind'], row['batch'], row['context'])):
      cells = {row['column']: figure(row) for row in group}
      print(f'{key[0]:12}{key[1]:>8} x {key[2]:<13}'
            + ''.join(f'{cells[name]:16,.3f}' if cells[name] is not None else f'{"-":>16}' for name in names))
