"""Quantizes a trained model and saves it as packed integer codes.

  python -m launch.quantize --model=DIR --config=configs/ptq/rtn_w4a4.py --workdir=OUT \
    [--calibration=FILE] [--text=FILE]

The model is a workdir, or a Hugging Face directory; the blocks of the latter are loaded one at a time. Interrupted, the
same command continues behind the last block; finished, it scores other texts.
"""

import time
from collections.abc import Callable

import jax

from jaxquant import errors
from jaxquant.calibration import driver
from jaxquant.interop import manifest
from jaxquant.layers import sharding
from jaxquant.numerics import trees
from jaxquant.training import block_store
from jaxquant.training import checkpoints
from launch import agreement
from launch import calibration
from launch import config_flag
from launch import model_flags
from launch import models
from launch import post_training
from launch import progress
from launch import quantize_config
from launch import runtime
from launch import scoring
from launch import stopping
from launch import workdir as workdirs

_CALIBRATION = calibration.define_texts()


def main(stop: Callable[[], None]) -> None:
  """Quantizes the model of the flags, and calls `stop` after each piece of work."""
  started = time.monotonic()
  say = progress.Printer()
  config = config_flag.value('configs/ptq/rtn_w4a4.py')
  with jax.set_mesh(sharding.data_mesh()):
    model, workdir = agreement.agree(lambda: _open(config))
    loaded, description = model.blocks()
    params, recipe, learned = post_training.prepare(loaded, model, config)
    say(description + (f'; {len(learned)} sites keep their learned ranges' if learned else ''))
    texts = model_flags.texts(model.tokenizer())
    batches = post_training.windows(config, model, calibration.tokens(_CALIBRATION.value, model))
    run = post_training.fingerprint(params, batches, model, config)
    decisions = agreement.agree(lambda: _finished(workdir, model, run))
    if decisions is not None:
      folder = workdir.checkpoints(model.variant, model.seed)
      result = driver.Result(checkpoints.load_params(folder).state['params'], decisions)
      store = block_store.BlockStore(workdir.blocks, run)
      say(f'restored {folder}')
    else:
      result, store = post_training.calibrated(params, recipe, batches, run, model, config, workdir, say, stop)
      workdir.write_decisions(result.decisions)
    _save(workdir, model, result, {'run': run, **_provenance(model, config)}, say)
    earlier = agreement.agree(workdir.read_results)
    names = model_flags.text_names()
    evaluations = [entry for entry in earlier.get('evaluations', ()) if entry['dataset'] not in names]
    for text in texts:
      stop()  # all is saved, and the same command goes on with the texts
      evaluations.append(scoring.evaluate(result.params, model, text, say, method=models.method(config.methods)))
  sizes = {'float32': 4 * trees.size(post_training.abstract(loaded)), 'stored': scoring.stored_bytes(result.params)}
  say(f'{sizes["stored"] / 1e6:.2f} MB, in float32 {sizes["float32"] / 1e6:.2f} MB')
  progress.finish(workdir, {
      'evaluations': evaluations, 'bytes': sizes,
      'environment': workdirs.environment(),
      'seconds': earlier.get('seconds', 0) + time.monotonic() - started}, say)
  store.clear()


def _open(config):
  """The model and the workdir of the flags; raises `UserError` for whatever can be known to fail later on."""
  quantize_config.check(config)
  model = model_flags.model(to_be_written=True)
  post_training.check_fit(config, model)
  calibration.check(_CALIBRATION.value, model)
  return model, workdirs.Workdir(runtime.WORKDIR.value, {
      'name': f'{model.path.name} quantized', 'model': model.architecture, 'ptq': config.to_dict(),
      'source': model_flags.source(model), 'calibration': list(_CALIBRATION.value),
      'training': {'length': model.length}})


def _finished(workdir, model, run) -> dict | None:
  """The decisions behind what is saved already, or None if nothing is.

  Raises:
    UserError: it was made of another model or of other tokens, of the same names.
  """
  folder = workdir.checkpoints(model.variant, model.seed)
  saved = checkpoints.Checkpoints(folder, read_only=True)
  if saved.latest_step() is None:
    return None
  if saved.metadata(saved.latest_step()).get('run') != run:
    raise errors.UserError(
        f'{folder} is damaged, or was made of another model or calibrated on other tokens than is there now: take '
        'another workdir')
  return workdirs.read_json(workdir.path / workdirs.DECISIONS)


def _provenance(model, config) -> dict:
  """JSON values: what was quantized, and how."""
  return {
      'source': model_flags.source(model), 'ptq': config.to_dict(), 'calibration': list(_CALIBRATION.value)}


def _save(workdir, model, result, made_from, say):
  saved = checkpoints.Checkpoints(workdir.checkpoints(model.variant, model.seed), keep_newest=1, report=say.error)
  if saved.latest_step() is None:
    saved.save(0, {'params': result.params}, metadata={
        'model': model.architecture, 'source': str(model.path), 'run': made_from['run']})
  saved.close()
  if jax.process_index() == 0:
    model.carry(workdir.path)
    manifest.write(workdir.path, result.params, made_from, result.decisions, workdirs.MODEL)
    say(f'saved {workdir.checkpoints(model.variant, model.seed)}')


if __name__ == '__main__':
  runtime.launch(stopping.stoppable(main))
