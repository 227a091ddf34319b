"""What the launchers share around a score: what can run here, and one record for each score."""

import math
from typing import Any

from absl import flags
import jax

import kernels
from jaxquant import errors
from jaxquant.data import tokenizers
from jaxquant.evaluation import likelihood
from jaxquant.evaluation import perplexity
from jaxquant.evaluation import precisions
from jaxquant.evaluation import task_scores
from jaxquant.evaluation import tasks
from jaxquant.interop import directory
from jaxquant.layers import attention
from jaxquant.layers import sharding
from jaxquant.numerics import formats
from jaxquant.numerics import qtensor
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from launch import corpora
from launch import models
from launch import progress
from launch import workdir

# How codes meet codes (layers.linear).
IMPLEMENTATIONS = ('simulated', 'xla', 'auto', 'mosaic_gpu')


def define_implementation() -> flags.FlagHolder[str]:
  """Defines the flag of the launchers that evaluate a model."""
  return flags.DEFINE_enum(
      'implementation', 'simulated', IMPLEMENTATIONS,
      'How codes meet codes: simulated by floats or by int8 products of XLA, the same bits; mosaic_gpu, the kernels '
      'for Hopper; auto, the fastest for the problem on this device.')


def define_tasks() -> flags.FlagHolder[list[str]]:
  """Defines the flag of tasks to score."""
  return flags.DEFINE_multi_string('tasks', [], 'Tasks to score: JSON Lines files, or directories of them.')


def check_length(length: int, model: models.Model) -> None:
  """Raises `UserError` for windows that the model has no context for, or that leave nothing to predict."""
  if not 2 <= length <= model.decoder.max_length:
    raise errors.UserError(f'--length={length} does not lie between 2 and the model\'s {model.decoder.max_length}')


def encoded(
    found: list[tasks.Task], model: models.Model, length: int) -> list[tuple[tasks.Task, list[likelihood.Pair]]]:
  """Tasks with their tokens; raises `UserError` for one that the model cannot be scored on in windows of `length`."""
  tokenizer = model.tokenizer()
  pairs = [(task, task_scores.encode(task, tokenizer)) for task in found]
  for task, of_task in pairs:
    task_scores.check(model.decoder, task, of_task, length)
  return pairs


def check_implementation(name: str, where: str) -> None:
  """Raises `UserError`, naming the flag or key `where` it stands, for an implementation that cannot run here."""
  if name not in IMPLEMENTATIONS:
    raise errors.UserError(f'{where} is {name!r}; there are {", ".join(IMPLEMENTATIONS)}')
  if name in kernels.DEVICE_IMPLEMENTATIONS:
    try:
      kernels.check_device()
    except NotImplementedError as error:
      raise errors.UserError(f'{where} is {name!r}, which does not run here: {error}') from None


def check_weights(params: Any, weights: int, weight_pattern: str, group_size: int | None) -> None:
  """Raises `UserError` if a pattern matches no linear of a float tree, or a group size does not divide its inputs.

  Args:
    params: the tree, which may be abstract.
    weights, weight_pattern, group_size: as in `settings.ptq`.
  """
  if not (linears := trees.matching(weight_pattern, trees.linears(params))):
    raise errors.UserError(f'config.ptq.weight_pattern {weight_pattern!r} matches no linear layer')
  if weights < 16:
    grid = quantizers.WeightQuantizer(formats.IntFormat(weights), group_size=group_size)
    for path in linears:
      grid.check(trees.get(params, path)['kernel'].shape, path)


def evaluate(
    params: Any, model: models.Model, text: corpora.Text, say: progress.Printer, *,
    precision: precisions.Precision | None = None, length: int | None = None, batch_size: int = 32,
    implementation: str = 'simulated', method: str | None = None, row: str | None = None) -> dict[str, Any]:
  """Scores a text: one record of `results.json`'s `evaluations`; also says it in a line.

  `row` is what it is called there, if not by the model's variant.
  """
  precision = precision or described(params)
  score = perplexity.score(
      params, model.decoder, text.tokens, text.num_bytes, length=length or model.length, batch_size=batch_size,
      implementation=implementation, mesh=sharding.data_mesh())
  made = record(
      score, precision, text.name, model.variant, model.seed, say, method or models.method(model.methods))
  return {**made, **_named(row)}


def evaluate_task(
    params: Any, model: models.Model, task: tasks.Task, pairs: list[likelihood.Pair], say: progress.Printer, *,
    length: int, batch_tokens: int, implementation: str, precision: precisions.Precision | None = None,
    method: str | None = None, row: str | None = None) -> dict[str, Any]:
  """The same for a task, whose tokens are `pairs`."""
  precision = precision or described(params)
  tokenizer = model.tokenizer()
  found = task_scores.score(
      params, model.decoder, tokenizer, task, pairs, length=length, stop=end_tokens(model, tokenizer),
      batch_tokens=batch_tokens, implementation=implementation, mesh=sharding.data_mesh())
  figures = ', '.join(f'{name.replace("_", " ")} {value:.4g}' for name, value in found.items())
  say(f'{model.variant} seed {model.seed} {task.name} {precision.name}: {figures}')
  method = method or models.method(model.methods)
  return {**_described(precision, task.name, model.variant, model.seed, method), **found, **_named(row)}


def record(
    score, precision, dataset: str, variant: str, seed: int, say: progress.Printer, method: str = 'rtn'
) -> dict[str, Any]:
  """The record of a score, said in a line; `method` is that of quantized weights."""
  say(f'{variant} seed {seed} {dataset} {precision.name}: perplexity {score.perplexity:.4g}, '
      f'{score.bits_per_byte:.4f} bits per byte')
  return {**_described(precision, dataset, variant, seed, method), 'perplexity': score.perplexity,
          'bits_per_byte': score.bits_per_byte, 'tokens': score.tokens}


def _named(row: str | None) -> dict[str, str]:
  return {} if row is None else {'row': row}


def _described(precision, dataset, variant, seed, method):
  return {
      'variant': variant, 'seed': seed, 'dataset': dataset, **precision.record,
      'method': method if precision.weights < 16 else 'none'}


def end_tokens(model: models.Model, tokenizer: tokenizers.Tokenizer) -> list[int]:
  """The tokens that end a text: what the tokenizer names so, and those that the model came with."""
  found = [tokenizer.end_of_text]
  folder = model.path if model.imported else model.path / workdir.ORIGIN
  opened = directory.Directory(folder) if folder.is_dir() else None
  for name in ('generation_config.json', directory.CONFIG):
    ends = opened.json(name).get('eos_token_id') if opened and opened.has(name) else None
    found += ends if isinstance(ends, list) else [ends]
  return sorted({token for token in found if isinstance(token, int)})


def described(params: Any) -> precisions.Precision:
  """The precision of a quantized tree: of its first quantized site, values and keys, and of its quantized kernels.

  Where kernels differ, it is the mean over their weights of the bits of a code, to two decimals.
  """
  kernels = [trees.get(params, path)['kernel'] for path in trees.linears(params)]
  sizes = [(kernel.format.bits, math.prod(kernel.shape)) for kernel in kernels if isinstance(kernel, qtensor.QTensor)]
  weights = 16
  if sizes:
    mean = round(sum(bits * size for bits, size in sizes) / sum(size for _, size in sizes), 2)
    weights = int(mean) if mean == int(mean) else mean
  bits = lambda quantizer: (quantizer.format if _dynamic(quantizer) else quantizer).bits
  found = {path: trees.get(params, path)['quantizer'] for path in trees.inputs(params)}
  of = lambda operand: next((bits(found[path]) for path in found if path.endswith(f'/{operand}')), 16)
  made = precisions.Precision(weights, values=of('value'), keys=of('key'))
  for path, quantizer in found.items():
    if path.rpartition('/')[2] not in attention.OPERANDS:
      return made._replace(activations=bits(quantizer), mode='dynamic' if _dynamic(quantizer) else 'static')
  return made


def _dynamic(quantizer) -> bool:
  return isinstance(quantizer, quantizers.DynamicQuantizer)


def stored_bytes(params: Any) -> int:
  """Bytes of all arrays of a tree."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
