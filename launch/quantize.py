"""Quantizes a trained model and saves it as packed integer codes.

  python -m launch.quantize --model=DIR --config=configs/ptq/rtn_w4a4.py --workdir=OUT [--calibration=FILE] [--text=FILE]
"""

import shutil
import time

from absl import flags
import jax

from jaxquant import errors
from jaxquant.calibration import driver
from jaxquant.data import text as text_lib
from jaxquant.data import token_file
from jaxquant.data import tokenizers
from jaxquant.evaluation import precisions
from jaxquant.models import decoder
from jaxquant.models import validate
from jaxquant.numerics import nodes
from jaxquant.numerics import trees
from jaxquant.training import checkpoints
from jaxquant.transforms import recipes
from launch import corpora
from launch import progress
from launch import runtime
from launch import scoring
from launch import workdir as workdirs

_CONFIG = runtime.define_config()
_MODEL = flags.DEFINE_string('model', None, 'Workdir of a trained model.')
_VARIANT = flags.DEFINE_string('variant', None, 'Which of its variants; by default the one trained for quantization.')
_SEED = flags.DEFINE_integer('seed', None, 'Which of its seeds; the smallest by default.')
_CALIBRATION = flags.DEFINE_multi_string(
    'calibration', [], 'Texts to calibrate on; the tokens that the model was trained on by default.')
_TEXT = flags.DEFINE_multi_string('text', [], 'Texts to score the quantized model on.')


def main() -> None:
  """Quantizes the model of the flags."""
  if _CONFIG.value is None:
    raise errors.UserError('--config=FILE is needed, for instance --config=configs/ptq/rtn_w4a4.py')
  config = _CONFIG.value
  started = time.monotonic()
  model = workdirs.Model(_MODEL.value, _VARIANT.value, _SEED.value)
  for sources in filter(None, (_CALIBRATION.value, _TEXT.value)):
    text_lib.check_readable(sources)
  mode = config.activation_mode if config.activations < 16 else 'none'
  if mode not in precisions.MODES:
    raise errors.UserError(f'config.activation_mode is {mode!r}; there are {", ".join(precisions.MODES)}')
  say = progress.Printer()
  restored = checkpoints.load_params(model.checkpoints, report=say.error)
  params, learned = float_tree(restored.state['params'], model)
  calibrates = mode == 'static' and not learned
  recipe = recipes.Recipe(
      weights=config.weights, weight_pattern=config.weight_pattern, group_size=config.group_size,
      activations=config.activations if calibrates else 16, site_patterns=tuple(config.site_patterns),
      ranges=config.ranges, percentile=config.percentile)
  if mode != 'static':
    sites = learned or recipe.sites(site.name for site in decoder.model_sites(model.decoder))
    params = precisions.with_inputs(params, sites, precisions.Precision(config.weights, config.activations, mode))
  workdir = workdirs.Workdir(runtime.WORKDIR.value, {
      'name': f'{model.path.name} quantized', 'model': model.config['model'], 'ptq': config.to_dict(),
      'source': {'workdir': str(model.path), 'variant': model.variant, 'seed': model.seed},
      'training': {'length': model.length}})
  say(f'{model.path} {model.variant} seed {model.seed} step {restored.step}'
      + (f'; {len(learned)} sites keep their learned ranges' if learned and mode == 'static' else ''))
  tokenizer = tokenizers.Tokenizer.load(model.path)
  tokens = tokenizer.encode_documents(text_lib.read_documents(_CALIBRATION.value)) if _CALIBRATION.value else (
      token_file.load(model.path / 'tokens' / 'train.npy').tokens)
  batches = scoring.calibration_batches(tokens, config.calibration_windows, model.length, config.seed)
  result = driver.run(params, decoder.staged(model.decoder), recipe.steps(), batches, report=say)
  _save(workdir, model, result.params, say)
  evaluations = [
      scoring.evaluate(result.params, model, corpora.read_text(source, (source,), tokenizer), say)
      for source in _TEXT.value]
  sizes = {'float32': 4 * trees.size(restored.state['params']), 'stored': scoring.stored_bytes(result.params)}
  say(f'{sizes["stored"] / 1e6:.2f} MB, in float32 {sizes["float32"] / 1e6:.2f} MB')
  progress.finish(workdir, {
      'evaluations': evaluations, 'decisions': result.decisions, 'bytes': sizes,
      'environment': workdirs.environment(), 'seconds': time.monotonic() - started}, say)


def float_tree(params, model):
  """The float tree without kernel quantizers, and its sites with learned ranges; refuses one that holds codes."""
  validate.validate(params, model.decoder)
  for path in trees.linears(params):
    if nodes.is_node(trees.get(params, path)['kernel']):
      raise errors.UserError(f'{model.path} is quantized already: {path} holds integer codes')
    params = trees.put(params, f'{path}/kernel_quantizer', None)
  return params, trees.inputs(params)


def _save(workdir, model, params, say):
  saved = checkpoints.Checkpoints(workdir.checkpoints('quantized', model.seed), keep_newest=1, report=say.error)
  if saved.latest_step() is None:
    saved.save(0, {'params': params}, metadata={'model': model.config['model'], 'source': str(model.path)})
  saved.close()
  if jax.process_index() == 0:
    shutil.copy(model.path / 'tokenizer.json', workdir.path / 'tokenizer.json')
    say(f'saved {workdir.checkpoints("quantized", model.seed)}')


if __name__ == '__main__':
  runtime.launch(main)
