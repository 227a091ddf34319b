"""Scores texts with a model, as it is or at the precisions of the comparison. Needs no configuration.

  python -m launch.evaluate --model=DIR --text=FILE --workdir=OUT

A float model is scored at W16A16, W16A4, W4A16 and W4A4 (static and dynamic activations; static ranges are the learned
ones, or calibrated on the tokens that the model was trained on); a quantized model as it is.
"""

import time

from absl import flags

from jaxquant import errors
from jaxquant.data import text as text_lib
from jaxquant.data import tokenizers
from jaxquant.evaluation import precisions
from jaxquant.models import validate
from jaxquant.numerics import nodes
from jaxquant.numerics import trees
from jaxquant.training import checkpoints
from launch import corpora
from launch import progress
from launch import runtime
from launch import scoring
from launch import workdir as workdirs

_MODEL = flags.DEFINE_string('model', None, 'Workdir of a trained or quantized model.')
_VARIANT = flags.DEFINE_string('variant', None, 'Which of its variants; by default the one trained for quantization.')
_SEED = flags.DEFINE_integer('seed', None, 'Which of its seeds; the smallest by default.')
_TEXT = flags.DEFINE_multi_string('text', [], 'Texts to score.')
_LENGTH = flags.DEFINE_integer('length', None, 'Tokens of a window; the context length of training by default.')
_BATCH = flags.DEFINE_integer('batch_size', 32, 'Windows evaluated at once.')
_IMPLEMENTATION = flags.DEFINE_enum(
    'implementation', 'simulated', ['simulated', 'xla'], 'How codes meet codes: float or int8 products, the same bits.')


def main() -> None:
  """Scores the texts of the flags."""
  started = time.monotonic()
  model = workdirs.Model(_MODEL.value, _VARIANT.value, _SEED.value)
  if not _TEXT.value:
    raise errors.UserError('--text=FILE is needed: what to score')
  text_lib.check_readable(_TEXT.value)
  length = _LENGTH.value or model.length
  if not 2 <= length <= model.decoder.max_length:
    raise errors.UserError(f'--length={length} does not lie between 2 and the model\'s {model.decoder.max_length}')
  workdir = workdirs.Workdir(runtime.WORKDIR.value, {
      'name': f'evaluation of {model.path.name}', 'model': model.config['model'], 'texts': list(_TEXT.value),
      'source': {'workdir': str(model.path), 'variant': model.variant, 'seed': model.seed},
      'length': length, 'implementation': _IMPLEMENTATION.value})
  say = progress.Printer()
  restored = checkpoints.load_params(model.checkpoints, report=say.error)
  params = restored.state['params']
  validate.validate(params, model.decoder)
  say(f'{model.path} {model.variant} seed {model.seed} step {restored.step}')
  tokenizer = tokenizers.Tokenizer.load(model.path)
  texts = [corpora.read_text(source, (source,), tokenizer) for source in _TEXT.value]
  if any(nodes.is_node(trees.get(params, path)['kernel']) for path in trees.linears(params)):
    trials = [(None, params)]
  else:
    static = scoring.with_static_ranges(params, model)
    trials = [(precision, precisions.rewrite(static, precision)) for precision in precisions.standard()]
  evaluations = [
      scoring.evaluate(tree, model, text, say, precision=precision, length=length, batch_size=_BATCH.value,
                       implementation=_IMPLEMENTATION.value)
      for precision, tree in trials for text in texts]
  results = {'evaluations': evaluations, 'environment': workdirs.environment(),
             'seconds': time.monotonic() - started}
  progress.finish(workdir, results, say)


if __name__ == '__main__':
  runtime.launch(main)
