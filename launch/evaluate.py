"""Scores texts and tasks with a model, as it is or at the precisions of the comparison. Needs no configuration.

  python -m launch.evaluate --model=DIR --text=FILE --tasks=FILE_OR_DIR --workdir=OUT [--precisions=NAMES]

The model is a workdir, or a Hugging Face directory, whose own tokenizer and context length are used. Tasks are
multiple choice, words to predict, or answers to generate; jaxquant/evaluation/tasks.py has the form of their files.

A float model that was trained here is scored at W16A16, W16A4, W4A16 and W4A4 (static and dynamic activations), with
the bits, groups, sites and ranges of its configuration: static ranges are the learned ones, or calibrated on the tokens
that the model was trained on. An imported float model is scored as it is, or with --calibration=FILE likewise: linears
and sites of all blocks, a scale per output channel, min-max ranges. Others are named by
--precisions='W8A16,W16A4 dynamic,W4A4 static'; only the static ones need tokens to calibrate on. A quantized model is
scored as it is.
"""

import dataclasses
import time
from collections.abc import Iterator

from absl import flags
import jax

from jaxquant import errors
from jaxquant.evaluation import batching
from jaxquant.evaluation import precisions
from jaxquant.evaluation import tasks
from jaxquant.layers import device_kernels
from jaxquant.layers import sharding
from jaxquant.numerics import trees
from launch import agreement
from launch import calibration
from launch import model_flags
from launch import progress
from launch import runtime
from launch import scoring
from launch import workdir as workdirs

_TASKS = scoring.define_tasks()
_LENGTH = flags.DEFINE_integer(
    'length', None, 'Tokens of a window; by default the context length, of training for a workdir.')
_BATCH = flags.DEFINE_integer(
    'batch_size', None, 'Windows evaluated at once; by default as many as make 8192 tokens, 32 at most.', lower_bound=1)
_PRECISIONS = flags.DEFINE_list(
    'precisions', [], "Precisions to score a float model at, such as 'W4A16,W4A4 dynamic'; see above for the default.")
_CALIBRATION = calibration.define_texts()
_IMPLEMENTATION = scoring.define_implementation()


def main() -> None:
  """Scores the texts and tasks of the flags."""
  started = time.monotonic()
  say = progress.Printer()
  with jax.set_mesh(sharding.data_mesh()):
    model, encoded, length, asked, workdir = agreement.agree(_open)
    params, description = model.load()
    say(description)
    texts, batch_size = model_flags.texts(model.tokenizer()), _BATCH.value or min(
        32, max(1, batching.BATCH_TOKENS // length))
    results = {'evaluations': [], 'environment': workdirs.environment()}
    for precision, tree in _trials(params, model, asked, say):
      tree = device_kernels.prepared(tree, _IMPLEMENTATION.value)
      options = {'precision': precision, 'length': length, 'implementation': _IMPLEMENTATION.value}
      results['evaluations'] += [
          scoring.evaluate(tree, model, text, say, batch_size=batch_size, **options) for text in texts]
      results['evaluations'] += [scoring.evaluate_task(
          tree, model, task, pairs, say, batch_tokens=batch_size * length, **options) for task, pairs in encoded]
      results['seconds'] = time.monotonic() - started
      workdir.write_results(results)
  progress.finish(workdir, results, say)


def _open():
  """The model, the tasks with their tokens, the length of a window, the precisions and the workdir of the flags."""
  if not model_flags.text_names() and not _TASKS.value:
    raise errors.UserError('--text=FILE or --tasks=FILE_OR_DIR is needed: what to score')
  scoring.check_implementation(_IMPLEMENTATION.value, '--implementation')
  found = tasks.read(_TASKS.value)
  model = model_flags.model()
  length = model.length if _LENGTH.value is None else _LENGTH.value
  scoring.check_length(length, model)
  asked = _asked(model)
  return model, scoring.encoded(found, model, length), length, asked, workdirs.Workdir(runtime.WORKDIR.value, {
      'name': f'evaluation of {model.path.name}', 'model': model.architecture, 'texts': model_flags.text_names(),
      'tasks': list(_TASKS.value), 'source': model_flags.source(model), 'length': length,
      'precisions': [precision.name for precision in asked], 'calibration': list(_CALIBRATION.value),
      'implementation': _IMPLEMENTATION.value})


def _asked(model) -> tuple[precisions.Precision, ...]:
  """The precisions to score a float model at, none for a quantized one; `UserError` for what cannot be made of it."""
  names, texts = _PRECISIONS.value, _CALIBRATION.value
  if model.quantized:
    for flag, given in (('precisions', names), ('calibration', texts)):
      if given:
        raise errors.UserError(f'--{flag} is for float models, and {model.path} is quantized already')
    return ()
  try:
    named = model.quantization.named(names)
  except errors.UserError as error:
    raise errors.UserError(f'--precisions: {error}') from error
  if model.imported and not names and not texts:
    return (precisions.Precision(),)
  tree = model.abstract()
  learned = [trees.get(tree, site)['quantizer'].bits for site in trees.inputs(tree)]
  static = [precision for precision in named if precision.mode == 'static']
  if learned and (other := [precision for precision in static if precision.activations != learned[0]]):
    raise errors.UserError(f'--precisions: {other[0].name!r} needs ranges of other bits than {model.path} has learned, '
                           f'{learned[0]}')
  if texts and (learned or not static):
    raise errors.UserError('--calibration is for static ranges, which ' + (
        f'{model.path} has learned' if learned else 'none of --precisions has'))
  if static and not learned:
    calibration.check(texts, model, repr(static[0].name))
  return named


def _trials(params, model, asked, say) -> Iterator[tuple[precisions.Precision, dict]]:
  """(precision, tree) pairs to score; the precision of a quantized model is that of its codes."""
  if not asked:
    yield scoring.described(params), params
    return
  learned, static = bool(trees.inputs(params)), {}
  calibrates = lambda precision: precision.mode == 'static' and not learned
  # At once: what is wrong with the windows is better said before anything is scored.
  batches = _batches(model, say) if any(map(calibrates, asked)) else None
  for precision in asked:
    tree, bits = params, precision.activations
    if calibrates(precision):
      if bits not in static:
        static[bits] = model.quantization.calibrated(params, model.decoder, batches, bits)
      tree = static[bits]
    yield precision, model.quantization.rewritten(tree, model.decoder, precision, learned)


def _batches(model, say):
  """The windows that static ranges are calibrated on: as many as in training, or of a text what it holds of them."""
  tokens, settings, length = calibration.tokens(_CALIBRATION.value, model), model.quantization, model.length
  if _CALIBRATION.value:
    length = calibration.length(model)
    if not (windows := min(settings.windows, len(tokens) // length)):
      raise errors.UserError(f'--calibration={_CALIBRATION.value[0]}: {len(tokens)} tokens are no window of {length}')
    settings = dataclasses.replace(settings, windows=windows)
  say(f'static ranges are calibrated on {settings.windows} windows of {length} tokens')
  return settings.batches(tokens, length)


if __name__ == '__main__':
  runtime.launch(main)
