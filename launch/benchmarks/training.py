"""Speed of training steps: the variants against the plain one. Repetitions alternate between them.

  python -m launch.benchmark training [--width=512 ...] [--output=FILE]
"""

import functools
import pathlib
import statistics
import tempfile
import time

from absl import flags
import jax
import numpy as np

from jaxquant.data import loader
from jaxquant.layers import sharding
from jaxquant.models import config as model_config
from jaxquant.models import staging
from jaxquant.training import optimizer
from jaxquant.training import qat
from jaxquant.training import regularizers
from jaxquant.training import step as training_step
from jaxquant.training import trainer
from launch import workdir as workdirs
from launch.benchmarks import count_flag

_WIDTH = count_flag.DEFINE('width', 512, 'Width of the model; heads of 64.')
_LAYERS = count_flag.DEFINE('layers', 8, 'Blocks.')
_FEED_FORWARD = count_flag.DEFINE('feed_forward', 1408, 'Hidden features of the MLP.')
_VOCABULARY = count_flag.DEFINE('vocabulary', 16384, 'Tokens.')
_BATCH = count_flag.DEFINE('batch_size', 96, 'Sequences of a step.')
_LENGTH = count_flag.DEFINE('length', 512, 'Tokens of a sequence.')
_STRIDE = count_flag.DEFINE('kurtosis_stride', 2, 'See jaxquant.training.regularizers.OutputKurtosis.')
_EVERY = count_flag.DEFINE('kurtosis_every', 4, 'See jaxquant.training.regularizers.OutputKurtosis.')
_STEPS = count_flag.DEFINE('steps', 16, 'Steps of a repetition, rounded up to a multiple of --kurtosis_every.')
_REPETITIONS = count_flag.DEFINE('repetitions', 7, 'Repetitions; the median counts.')
_SHARDED = flags.DEFINE_bool('fully_sharded', False, 'Split parameters over the devices.')
_PEAK = flags.DEFINE_float('peak_tflops', 0.0, 'Peak of a device in bfloat16, for the utilization; 0: by device name.')

_VARIANTS = ('baseline', 'qat', 'kurtosis', 'both')
_PEAKS = {'H100': 989.0, 'H200': 989.0, 'A100': 312.0}  # dense bfloat16 TFLOP/s by the vendor's data sheets


def run() -> dict:
  """Times a training step of every variant, input pipeline included."""
  model = model_config.TransformerConfig(
      vocabulary=_VOCABULARY.value, width=_WIDTH.value, layers=_LAYERS.value, heads=_WIDTH.value // 64,
      feed_forward=_FEED_FORWARD.value, max_length=_LENGTH.value)
  mesh = sharding.data_mesh()
  sites = tuple(site.name for site in staging.model_sites(model))
  tx = optimizer.make(optimizer.OptimizerConfig(), 1000)
  runs = {}
  with tempfile.TemporaryDirectory() as folder, jax.set_mesh(mesh):
    batches = _batches(pathlib.Path(folder))
    for variant in _VARIANTS:
      quantized, regularized = variant in ('qat', 'both'), variant in ('kurtosis', 'both')
      penalty = regularizers.OutputKurtosis(
          1e-4, stride=_STRIDE.value, every=_EVERY.value) if regularized else None
      fitter = trainer.Trainer(
          training_step.Objective(model, penalty), tx, mesh, fully_sharded=_SHARDED.value)
      initialize = functools.partial(trainer.model_params, model, jax.random.key(0))
      make = (lambda: qat.prepare(initialize(), qat.QATConfig(align_zero=True), sites)) if quantized else initialize
      run = {'fitter': fitter, 'state': fitter.initialize(fitter.compute(make)), 'times': []}
      # Whether the kurtosis is due or not, both programs run in the first `every` steps.
      run['compile_seconds'] = _seconds(run, batches, _EVERY.value)
      runs[variant] = run
      print(f'{variant}: first steps after {run["compile_seconds"]:.1f} s', flush=True)
    steps = -(-_STEPS.value // _EVERY.value) * _EVERY.value
    for _ in range(_REPETITIONS.value):
      for run in runs.values():
        _seconds(run, batches, _EVERY.value)
        run['times'].append(_seconds(run, batches, steps) / steps)
  return _table(model, runs)


def _batches(folder):
  """The real input pipeline over a memory-mapped file of random tokens."""
  tokens = np.random.default_rng(0).integers(0, _VOCABULARY.value, 20_000_000, dtype=np.uint16)
  np.save(folder / 'tokens.npy', tokens)
  return loader.batches(
      np.load(folder / 'tokens.npy', mmap_mode='r'), batch_size=_BATCH.value, length=_LENGTH.value, seed=0,
      process_index=jax.process_index(), process_count=jax.process_count())


def _seconds(run, batches, steps) -> float:
  """Trains for so many steps, a multiple of --kurtosis_every."""
  started = time.monotonic()
  for number in range(1, steps + 1):
    run['state'], metrics = run['fitter'].step(run['state'], next(batches)['tokens'], number)
  jax.block_until_ready((run['state'], metrics))
  return time.monotonic() - started


def _table(model, runs) -> dict:
  tokens = _BATCH.value * _LENGTH.value
  environment = workdirs.environment()
  peak = _PEAK.value or next((v for name, v in _PEAKS.items() if name in environment['device']), 0.0)
  flops = model.training_flops_per_token(_LENGTH.value)
  rows = []
  for variant, run in runs.items():
    seconds = statistics.median(run['times'])
    rows.append({
        'variant': variant, 'milliseconds': 1e3 * seconds, 'fastest': 1e3 * min(run['times']),
        'slowest': 1e3 * max(run['times']), 'tokens_per_second': tokens / seconds,
        'ratio': _ratio(run['times'], runs['baseline']['times']),
        'utilization': flops * tokens / seconds / (peak * 1e12 * jax.device_count()) if peak else None,
        'compile_seconds': run['compile_seconds']})
  print(f'\n{environment["device_count"]} x {environment["device"]}, width {model.width}, {model.layers} layers, '
        f'{_BATCH.value} x {_LENGTH.value} tokens; kurtosis of one in {_STRIDE.value} sequences at one in '
        f'{_EVERY.value} steps')
  print(f'{"":10}{"ms":>8}{"(range)":>16}{"tokens/s":>12}{"ratio":>8}{"MFU":>7}')
  for row in rows:
    used = f'{row["utilization"]:.1%}' if row['utilization'] else 'n/a'
    print(f'{row["variant"]:10}{row["milliseconds"]:8.2f}{row["fastest"]:8.2f}{row["slowest"]:8.2f}'
          f'{row["tokens_per_second"]:12,.0f}{row["ratio"]:8.3f}{used:>7}')
  return {'environment': environment, 'model': model.to_dict(), 'rows': rows}


def _ratio(times, reference) -> float:
  """The median ratio within a repetition: clocks drift between repetitions by more than variants differ."""
  return statistics.median(time / other for time, other in zip(times, reference))
