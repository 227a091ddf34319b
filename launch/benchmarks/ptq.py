"""Speed of post-training quantization: GPTQ of one layer, and methods on a model of generated weights, block by block.

  python -m launch.benchmark ptq [--methods=gptq,awq,...] [--layers=32 ...] [--output=FILE]

Blocks are generated when they are loaded and packed when they are done, so that a model far larger than the device's
memory can be measured; its statistics, solutions and forwards cost what those of a trained one cost.
"""

import functools
import statistics
import time
from typing import Any

from absl import flags
import jax
import jax.numpy as jnp

from jaxquant import compilation
from jaxquant.calibration import channels
from jaxquant.calibration import driver
from jaxquant.layers import sharding
from jaxquant.models import blocks
from jaxquant.models import config as model_config
from jaxquant.models import staging
from jaxquant.models import validate
from jaxquant.numerics import formats
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers
from jaxquant.transforms import error_feedback
from jaxquant.transforms import methods
from jaxquant.transforms import recipes
from launch import workdir
from launch.benchmarks import count_flag

_METHODS = flags.DEFINE_list('methods', ['gptq'], 'Methods to run on the model; empty: only the layer.')
_WIDTH = count_flag.DEFINE('width', 4096, 'Width of the model; heads of 128.')
_LAYERS = count_flag.DEFINE('layers', 32, 'Blocks.')
_FEED_FORWARD = count_flag.DEFINE('feed_forward', 11008, 'Hidden features of the MLP.')
_SEQUENCES = count_flag.DEFINE('sequences', 128, 'Calibration sequences.')
_LENGTH = count_flag.DEFINE('length', 2048, 'Tokens of a sequence.')
_BATCH = count_flag.DEFINE('batch_size', 8, 'Sequences observed at once.')
_GROUP = count_flag.DEFINE('group_size', 128, 'Inputs that share a weight scale.')
_INPUTS = flags.DEFINE_multi_integer(
    'inputs', [4096, 14336], 'Inputs of the single layer; one row each.', lower_bound=1)
_OUTPUTS = count_flag.DEFINE('outputs', 4096, 'Outputs of the single layer.')
_REPETITIONS = count_flag.DEFINE('repetitions', 5, 'Repetitions on the single layer; the median counts.')


def run() -> dict[str, Any]:
  """Times the layer, then every method on the model."""
  # Mistakes first: the model would have its own found behind the layers, which take long.
  for name in _METHODS.value:
    methods.get(name)
  for inputs in (*_INPUTS.value, *[_WIDTH.value, _FEED_FORWARD.value] * bool(_METHODS.value)):
    quantize.group_count(inputs, _GROUP.value, f'a layer of {inputs} inputs')
  model = model_config.TransformerConfig(
      vocabulary=1024, width=_WIDTH.value, layers=_LAYERS.value, heads=max(1, _WIDTH.value // 128),
      feed_forward=_FEED_FORWARD.value, max_length=_LENGTH.value)
  environment = workdir.environment()
  weight = quantizers.WeightQuantizer(formats.IntFormat(4, symmetric=False), group_size=_GROUP.value)
  print(f'{environment["device"]}; 4-bit weights in groups of {_GROUP.value}, '
        f'{_SEQUENCES.value} x {_LENGTH.value} tokens')
  layers = [_layer(inputs, weight) for inputs in _INPUTS.value]
  _print(layers)
  rows = []
  with jax.set_mesh(sharding.data_mesh()):
    for name in _METHODS.value:
      rows.append(_model(name, model, weight))
      _print(rows[-1:], header=len(rows) == 1)
  return {'environment': environment, 'model': model.to_dict(), 'layers': layers, 'methods': rows}


def _layer(inputs: int, weight) -> dict[str, Any]:
  """GPTQ of a single layer, and the statistic that it needs."""
  make = lambda key, *shape: jax.random.normal(key, shape, jnp.bfloat16)
  keys = jax.random.split(jax.random.key(0), 3)
  # Correlated inputs of unequal strength: rounding can make up for itself, as in a trained layer.
  mix = make(keys[0], inputs, inputs) * 0.1 / inputs**0.5 + jnp.eye(inputs, dtype=jnp.bfloat16)
  x = make(keys[1], _BATCH.value, _LENGTH.value, inputs) @ mix
  kernel = make(keys[2], inputs, _OUTPUTS.value).astype(jnp.float32)
  observe = jax.jit(lambda moment, x: moment.observed(x), donate_argnums=0)

  def hessian():
    moment = channels.SecondMoment.empty(inputs)
    for _ in range(-(-_SEQUENCES.value // _BATCH.value)):
      moment = observe(moment, x)
    return jax.block_until_ready(moment.mean())

  @functools.partial(jax.jit, compiler_options=compilation.options())
  def solve(kernel, moment):
    factor = error_feedback.factorize(moment)
    rounded, = error_feedback.solve([kernel], factor, weight)
    difference, plain = (values - kernel for values in (quantize.dequantize(rounded), weight(kernel)))
    return rounded, factor.increases, *(channels.output_error(moment, d) for d in (difference, plain))

  moment = hessian()
  started = time.monotonic()
  compiled = solve.lower(kernel, moment).compile()
  compile_seconds = time.monotonic() - started
  times = {'hessian': [], 'solve': []}
  for _ in range(_REPETITIONS.value):
    for what, work in (('hessian', hessian), ('solve', lambda: jax.block_until_ready(compiled(kernel, moment)))):
      started = time.monotonic()
      result = work()
      times[what].append(time.monotonic() - started)
  _, increases, error, error_rtn = result
  return {'inputs': inputs, 'outputs': _OUTPUTS.value, 'compile_seconds': compile_seconds,
          'hessian_seconds': statistics.median(times['hessian']), 'solve_seconds': statistics.median(times['solve']),
          'error_over_rtn': float(error / error_rtn), 'damping_increases': int(increases)}


def _model(name: str, model, weight) -> dict[str, Any]:
  """A method on the model, and rounding behind it where it leaves floats; its calibration forwards included."""
  method = methods.get(name)
  activation = quantizers.DynamicQuantizer(formats.IntFormat(8, symmetric=False)) if method.owns == 'sites' else None
  recipe = recipes.Recipe(
      methods=(name,) if method.rounds else (name, 'round_to_nearest'), weight=weight, activation=activation)
  keys = jax.random.split(jax.random.key(1), -(-_SEQUENCES.value // _BATCH.value))
  batches = [jax.random.randint(key, (_BATCH.value, _LENGTH.value), 0, model.vocabulary, jnp.int32) for key in keys]
  ends, started = {}, time.monotonic()

  def report(progress):
    ends[progress.block] = progress.seconds

  source = _Generated(model)
  result = driver.run(
      source, staging.staged(model), recipe.steps(staging.model_sites(model)), batches, report=report)
  jax.block_until_ready(result.params)
  seconds = time.monotonic() - started
  marks = sorted(ends.values())
  stats = jax.local_devices()[0].memory_stats() or {}
  return {'method': '+'.join(recipe.methods), 'seconds': seconds,
          # The first two blocks compile.
          'seconds_per_block': statistics.median(b - a for a, b in zip(marks[1:], marks[2:])) if marks[2:] else None,
          'first_block_seconds': marks[0], 'peak_gigabytes': stats.get('peak_bytes_in_use', 0) / 1e9 or None,
          'packed_gigabytes': sum(leaf.nbytes for leaf in jax.tree.leaves(result.params)) / 1e9}


class _Generated:
  """A `calibration.stores.Source` that makes random blocks, one at a time."""

  def __init__(self, model):
    self._model = model
    block = blocks.Block(model)
    x = jnp.zeros((1, 1, model.width), model.compute_dtype)
    self._block = jax.jit(lambda key: block.init(key, x)['params'])

  def abstract(self):
    return validate.abstract_params(self._model)

  def load(self, path):
    if path:
      return self._block(jax.random.fold_in(jax.random.key(2), int(path.rpartition('/')[2])))
    root = {key: value for key, value in self.abstract().items() if key != 'layers'}
    key = jax.random.key(3)
    return jax.tree.map(lambda leaf: 0.02 * jax.random.normal(key, leaf.shape, leaf.dtype), root)

  def assemble(self, finished):
    return finished


def _print(rows: list[dict[str, Any]], header: bool = True) -> None:
  """A table of `rows`, which have the same keys."""
  if header and rows:
    print('  '.join(f'{key:>{max(len(key), 10)}}' for key in rows[0]))
  for row in rows:
    cells = {key: f'{value:.4g}' if isinstance(value, float) else str(value) for key, value in row.items()}
    print('  '.join(f'{cell:>{max(len(key), 10)}}' for key, cell in cells.items()), flush=True)
