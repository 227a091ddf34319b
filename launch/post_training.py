"""Post-training quantization as a configuration of `launch.quantize` asks for it: checked against a model, and run."""

import json

import jax

from jaxquant import errors
from jaxquant.calibration import driver
from jaxquant.calibration import memory
from jaxquant.calibration import stores
from jaxquant.data import loader
from jaxquant.evaluation import precisions
from jaxquant.interop import source as source_lib
from jaxquant.layers import attention
from jaxquant.models import staging
from jaxquant.numerics import trees
from jaxquant.training import block_store
from jaxquant.transforms import grids
from jaxquant.transforms import recipes
from launch import agreement
from launch import calibration
from launch import models
from launch import progress
from launch import quantize_config

def check_fit(config, model) -> None:
  """Raises `UserError` for a configuration that does not fit a model, as far as can be known before that is loaded."""
  if model.methods:
    raise errors.UserError(f'{model.path} is quantized already, by {models.method(model.methods)}')
  if (config.calibration_length or 0) > model.decoder.max_length:
    raise errors.UserError(f'config.calibration_length {config.calibration_length} exceeds the model\'s '
                           f'{model.decoder.max_length}')
  if config.cache_bits < 16 and not model.decoder.causal:
    raise errors.UserError(f'config.cache_bits is {config.cache_bits}, but {model.path} is an encoder and has no cache')
  tree = model.abstract()
  params = jax.eval_shape(lambda tree: prepare(tree, model, config)[0], tree)
  _recipe_of(tree, config).steps(staging.model_sites(model.decoder))
  if (asked := quantize_config.budget(config)) is not None:
    asked.cheapest(params, staging.staged(model.decoder))
    if asked.score == 'loss' and not (model.decoder.head and (model.decoder.causal or model.masks)):
      raise errors.UserError(f'config.allocation.score is \'loss\', and {model.path} has none: it lacks a '
                             f'{"mask" if model.decoder.head else "language-model head"}')


def prepare(params, model, config):
  """What the driver needs.

  Args:
    params: a float tree, perhaps with learned ranges and kernel quantizers, or a source, which has neither.
    model: the model it is of.
    config: as `settings.quantize` makes it.

  Returns:
    (params, recipe, kept): the tree or source as the driver gets it, the recipe, and the sites that keep their learned
    ranges.

  Raises:
    UserError: the tree is quantized already, a grid does not fit a kernel, or ranges were learned for other bits.
  """
  tree = abstract(params)
  if path := models.quantized_linear(tree):
    raise errors.UserError(f'{model.path} is quantized already: {path} holds integer codes')
  if operands := [path for path in trees.inputs(tree) if path.rpartition('/')[2] in attention.OPERANDS]:
    raise errors.UserError(f'{model.path} is quantized already: {operands[0]} has a range')
  if not isinstance(params, stores.Source):
    params = tree = trees.without(params, 'kernel_quantizer')
  mode, learned = quantize_config.mode(config), trees.inputs(tree)
  made = _recipe_of(tree, config)
  if made.weight is not None:
    if not (linears := trees.matching(made.weight_pattern, trees.linears(tree))):
      raise errors.UserError(f'config.weight_pattern {made.weight_pattern!r} matches no linear layer')
    if 'clip_search' in made.methods and not trees.matching(made.clip_pattern, linears):
      raise errors.UserError(f'config.clip_pattern {made.clip_pattern!r} matches no linear layer that is quantized')
    for path in linears:
      made.weight.check(trees.get(tree, path)['kernel'].shape, path)
  for site in learned if mode == 'static' else ():
    if (bits := getattr(trees.get(tree, site)['quantizer'], 'bits', None)) != config.activations:
      raise errors.UserError(
          f'config.activations is {config.activations}, but {site} of {model.path} ' + (
              f'has learned its range for {bits} bits; 16 leaves activations clipped to it, without codes'
              if bits else 'has a dynamic range'))
  if learned and mode != 'static':
    # What was learned stays as a clip: the model was trained with it.
    params = precisions.with_inputs(
        params, learned, precisions.Precision(config.weights, config.activations, mode), learned=True)
  return params, made, learned if mode == 'static' else ()


def _recipe_of(tree, config) -> recipes.Recipe:
  """The recipe for a tree, which keeps the ranges that it has learned."""
  return quantize_config.recipe(config, None if trees.inputs(tree) else quantize_config.mode(config))


def windows(config, model, tokens) -> list:
  """The calibration windows of a configuration, out of int [n] tokens, as `calibration.batches` makes them."""
  check_tokens(config, model, tokens)
  return calibration.batches(tokens, config.calibration_windows, _length(config, model), config.seed)


def check_tokens(config, model, tokens) -> None:
  """Raises `UserError` if int [n] tokens hold fewer windows than a configuration asks for."""
  try:
    loader.check_windows(len(tokens), config.calibration_windows, _length(config, model))
  except errors.UserError as error:
    raise errors.UserError(f'config.calibration_windows: {error}') from error


def _length(config, model) -> int:
  return config.calibration_length or calibration.length(model)


def calibrated(params, made: recipes.Recipe, batches, identity: str, model, config, workdir, say, stop):
  """Runs a recipe, behind the last block that an interrupted run of it has left in the workdir.

  Args:
    params, made: what `prepare` returned.
    batches: what `windows` returned.
    identity: what `fingerprint` returned.
    model: a `models.Model`.
    config: the configuration.
    workdir: a `workdir.Workdir`, for the blocks and their records.
    say: prints, the memory that all of it takes first.
    stop: called after each piece of work; it may raise.

  Returns:
    (result of the driver, the store of its last run, to be cleared when the result is safe).
  """
  stages, sites = staging.staged(model.decoder), staging.model_sites(model.decoder)
  asked = quantize_config.budget(config)
  if asked is not None and isinstance(params, stores.Source):
    params = params.assemble({})  # bits are traded between all blocks
  runs = [(params, made.steps(sites))]
  if asked is not None:
    runs = [(params, made.folds(sites) + asked.steps()), (asked.cheapest(params, stages), made.rounding())]
  needed = max((memory.estimate(tree, stages, steps, batches) for tree, steps in runs), key=lambda each: each.total)
  say(f'memory {needed}')
  agreement.agree(lambda: needed.check((jax.local_devices()[0].memory_stats() or {}).get('bytes_limit')))

  workdir.drop_records_after(0, model.variant, model.seed)
  log = lambda record: workdir.log({'variant': model.variant, 'seed': model.seed, **record})

  def run(params, steps, folder, done, identity=identity):
    store, tell = block_store.BlockStore(folder, identity, say.error), progress.blocks(say, log, done)

    def report(made):
      tell(made)
      stop()

    return driver.run(params, stages, steps, batches, store=store, report=report), store

  if asked is None:
    return run(params, runs[0][1], workdir.blocks, 'calibrated')
  # Bits are traded between all blocks, so that all of them are folded and scored before the first one is rounded.
  folded = driver.Result(params, {})
  if runs[0][1]:
    folded, _ = run(params, runs[0][1], workdir.blocks / 'scored', 'scored' if asked.steps() else 'folded')
  chosen, decisions = asked.allocate(folded, model.decoder, batches)
  say(f'bits by {asked.score}, at most {asked.bits} stored per weight:\n{chosen.table()}')
  # Scores that differ in a last bit may choose otherwise; blocks that were rounded to other grids are none of this run.
  result, store = run(chosen.written(folded.params), runs[1][1], workdir.blocks, 'calibrated',
                      json.dumps([identity, [grids.name(choice.grid) for choice in chosen.choices.values()]]))
  return result._replace(decisions=driver.merged(decisions, result.decisions)), store


def abstract(params):
  """The tree as shapes; `params` may be a source of it."""
  return params.abstract() if isinstance(params, stores.Source) else jax.eval_shape(lambda tree: tree, params)


def fingerprint(params, batches, model, config) -> str:
  """What the result of a calibration follows from (`block_store.fingerprint`), also where a source is to be read."""
  configuration = [model.architecture, config.to_dict()]
  if isinstance(params, source_lib.DirectorySource):
    return block_store.fingerprint({}, batches, [params.directory.fingerprint(), *configuration])
  return block_store.fingerprint(params, batches, configuration)
