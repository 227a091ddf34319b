"""Scores texts and tasks with a model, as it is or at the precisions of the comparison. Needs no configuration.

  python -m launch.evaluate --model=DIR --text=FILE --tasks=FILE_OR_DIR --workdir=OUT

The model is a workdir, or a Hugging Face directory, whose own tokenizer and context length are used. Tasks are
multiple choice, words to predict, or answers to generate; jaxquant/evaluation/tasks.py has the form of their files. A
float model of a workdir is scored at W16A16, W16A4, W4A16 and W4A4 (static and dynamic activations; static ranges are
the learned ones, or calibrated on the tokens that the model was trained on); a quantized or imported model as it is.
"""

import time

from absl import flags
import jax

from jaxquant import errors
from jaxquant.evaluation import batching
from jaxquant.evaluation import precisions
from jaxquant.evaluation import task_scores
from jaxquant.evaluation import tasks
from jaxquant.layers import device_kernels
from jaxquant.layers import sharding
from launch import agreement
from launch import model_flags
from launch import models
from launch import progress
from launch import runtime
from launch import scoring
from launch import workdir as workdirs

_TASKS = flags.DEFINE_multi_string('tasks', [], 'Tasks to score: JSON Lines files, or directories of them.')
_LENGTH = flags.DEFINE_integer(
    'length', None, 'Tokens of a window; by default the context length, of training for a workdir.')
_BATCH = flags.DEFINE_integer(
    'batch_size', None, 'Windows evaluated at once; by default as many as make 8192 tokens, 32 at most.', lower_bound=1)
_IMPLEMENTATION = scoring.define_implementation()


def main() -> None:
  """Scores the texts and tasks of the flags."""
  started = time.monotonic()
  say = progress.Printer()
  with jax.set_mesh(sharding.data_mesh()):
    model, encoded, length, workdir = agreement.agree(_open)
    params, description = model.load(say.error)
    say(description)
    texts, batch_size = model_flags.texts(model.tokenizer()), _BATCH.value or min(
        32, max(1, batching.BATCH_TOKENS // length))
    evaluations = []
    for precision, tree in _trials(params, model):
      tree = device_kernels.prepared(tree, _IMPLEMENTATION.value)
      options = {'precision': precision, 'length': length, 'implementation': _IMPLEMENTATION.value}
      evaluations += [scoring.evaluate(tree, model, text, say, batch_size=batch_size, **options) for text in texts]
      evaluations += [scoring.evaluate_task(
          tree, model, task, pairs, say, batch_tokens=batch_size * length, **options) for task, pairs in encoded]
  results = {'evaluations': evaluations, 'environment': workdirs.environment(),
             'seconds': time.monotonic() - started}
  progress.finish(workdir, results, say)


def _open():
  """The model, the tasks with their tokens, the length of a window and the workdir of the flags."""
  if not model_flags.text_names() and not _TASKS.value:
    raise errors.UserError('--text=FILE or --tasks=FILE_OR_DIR is needed: what to score')
  scoring.check_implementation(_IMPLEMENTATION.value, '--implementation')
  found = tasks.read(_TASKS.value)
  model = model_flags.model()
  length = model.length if _LENGTH.value is None else _LENGTH.value
  if not 2 <= length <= model.decoder.max_length:
    raise errors.UserError(f'--length={length} does not lie between 2 and the model\'s {model.decoder.max_length}')
  tokenizer = model.tokenizer()
  encoded = [(task, task_scores.encode(task, tokenizer)) for task in found]
  for task, pairs in encoded:
    task_scores.check(model.decoder, task, pairs, length)
  return model, encoded, length, workdirs.Workdir(runtime.WORKDIR.value, {
      'name': f'evaluation of {model.path.name}', 'model': model.architecture, 'texts': model_flags.text_names(),
      'tasks': list(_TASKS.value),
      'source': {'workdir': str(model.path), 'variant': model.variant, 'seed': model.seed},
      'length': length, 'implementation': _IMPLEMENTATION.value})


def _trials(params, model):
  """(precision, tree) pairs to score; the precision of a quantized model is that of its codes."""
  if model.imported or models.quantized_linear(params):
    return [(scoring.described(params), params)]
  static = scoring.with_static_ranges(params, model)
  bits = scoring.described(static).activations
  return [(precision, precisions.rewrite(static, precision, learned=static is params))
          for precision in precisions.standard(activations=bits)]


if __name__ == '__main__':
  runtime.launch(main)
