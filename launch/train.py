"""Trains variants of a language model, quantizes and evaluates each, and writes the report.

  python -m launch.train --config=configs/quickstart.py --workdir=DIR [--config.a.b=value ...]
"""

import functools
import resource
import sys
import time

import jax

from jaxquant import errors
from jaxquant.calibration import driver
from jaxquant.data import loader
from jaxquant.evaluation import outliers
from jaxquant.evaluation import perplexity
from jaxquant.evaluation import precisions
from jaxquant.layers import sharding
from jaxquant.models import config as model_config
from jaxquant.models import decoder
from jaxquant.models import validate
from jaxquant.numerics import trees
from jaxquant.training import checkpoints
from jaxquant.training import optimizer
from jaxquant.training import preemption
from jaxquant.training import qat
from jaxquant.training import regularizers
from jaxquant.training import step as training_step
from jaxquant.training import trainer
from jaxquant.transforms import recipes
from launch import corpora
from launch import progress
from launch import runtime
from launch import scoring
from launch import workdir as workdirs

_CONFIG = runtime.define_config()
_VALIDATION_WINDOWS = 64


class Experiment:
  """A configuration with its parts made and checked."""

  def __init__(self, config):
    self.config = config
    self.model = model_config.DecoderConfig.from_dict({**config.model.to_dict(), 'max_length': max(
        config.model.max_length, config.training.length)})
    self.optimizer = optimizer.OptimizerConfig(**config.optimizer)
    self.qat = qat.QATConfig(**config.qat)
    self.output_kurtosis = regularizers.OutputKurtosis(**config.kurtosis) if config.kurtosis.weight else None
    self.weight_kurtosis = regularizers.WeightKurtosis(**config.kure) if config.kure.weight else None
    self.recipe = recipes.Recipe(
        weights=16, activations=self.qat.bits, site_patterns=tuple(pattern for pattern, _ in self.qat.ranges),
        ranges=config.ptq.ranges, percentile=config.ptq.percentile)
    self.precisions = precisions.named(config.evaluation.precisions, config.ptq.weights, self.qat.bits)
    self.site_names = tuple(site.name for site in decoder.model_sites(self.model))
    self._check()

  def objective(self, variant: str) -> training_step.Objective:
    """The loss of a variant."""
    if variant not in ('kurtosis', 'both'):
      return training_step.Objective(self.model)
    return training_step.Objective(self.model, self.output_kurtosis, self.weight_kurtosis)

  def training_tree(self, variant: str, params):
    """The float tree as a variant trains it."""
    return qat.prepare(params, self.qat, self.site_names) if variant in ('qat', 'both') else params

  def _check(self):
    config = self.config
    if unknown := set(config.variants) - set(workdirs.VARIANTS) or not config.variants:
      raise errors.UserError(f'config.variants holds {unknown}; there are {", ".join(workdirs.VARIANTS)}')
    if not config.seeds:
      raise errors.UserError('config.seeds is empty')
    for key in ('steps', 'batch_size', 'length', 'microbatches', 'log_every', 'save_every', 'measurements'):
      if config.training[key] < 1:
        raise errors.UserError(f'config.training.{key} must be at least 1, not {config.training[key]}')
    parts = jax.device_count() * config.training.microbatches
    if config.training.batch_size % parts:
      raise errors.UserError(
          f'config.training.batch_size {config.training.batch_size} does not divide over {jax.device_count()} devices '
          f'and {config.training.microbatches} microbatches')
    abstract = validate.abstract_params(self.model)
    jax.eval_shape(functools.partial(qat.prepare, config=self.qat, site_names=self.site_names), abstract)
    for pattern in (config.kurtosis.pattern, config.kure.pattern, config.ptq.weight_pattern):
      if not trees.matching(pattern, trees.linears(abstract)):
        raise errors.UserError(f'the pattern {pattern!r} matches no linear layer')
    if config.ptq.group_size:
      jax.eval_shape(lambda params: precisions.rewrite(
          params, precisions.Precision(config.ptq.weights), weight_pattern=config.ptq.weight_pattern,
          group_size=config.ptq.group_size), abstract)
    corpora.check(config.data)


def main() -> None:
  """Runs the experiment of the flags."""
  if _CONFIG.value is None:
    raise errors.UserError('--config=FILE is needed, for instance --config=configs/quickstart.py')
  config = _CONFIG.value
  started = time.monotonic()
  experiment = Experiment(config)
  path = runtime.WORKDIR.value or f'runs/{config.name}'
  workdir = workdirs.Workdir(path, {**config.to_dict(), 'model': experiment.model.to_dict()})
  environment = workdirs.environment()
  say = progress.Printer()
  say(f'workdir {workdir.path}; {environment["device_count"]} x {environment["device"]}, jax {environment["jax"]}')
  corpus = corpora.load(
      config.data, experiment.model.vocabulary, workdir.path, config.training.length, config.training.batch_size)
  if corpus.tokenizer.vocab_size > experiment.model.vocabulary:
    raise errors.UserError(f'the tokenizer has {corpus.tokenizer.vocab_size} tokens, config.model.vocabulary only '
                           f'{experiment.model.vocabulary}')
  say(f'{len(corpus.train):,} training tokens; {experiment.model.block_parameters:,} parameters in the blocks')
  results = {'evaluations': [], 'histograms': [], 'outlier_summary': [], 'runs': [], 'environment': environment}
  with preemption.Preemption() as stop:
    for seed in config.seeds:
      for variant in config.variants:
        params, run = train_variant(experiment, corpus, workdir, variant, seed, stop, say)
        results['runs'].append(run)
        measure(experiment, corpus, params, variant, seed, results, say)
        results['seconds'] = time.monotonic() - started
        workdir.write_results(results)
  progress.finish(workdir, results, say)


def train_variant(experiment, corpus, workdir, variant, seed, stop, say):
  """Trains one variant with one seed, or continues it: (final parameters, record of the run)."""
  config, options = experiment.config, experiment.config.training
  say(f'-- {variant}, seed {seed}')
  mesh = sharding.data_mesh()
  tx = optimizer.make(experiment.optimizer, options.steps)
  fitter = trainer.Trainer(
      experiment.objective(variant), tx, mesh, fully_sharded=options.fully_sharded, microbatches=options.microbatches)
  start = initial_params(config, experiment.model)
  make = lambda: experiment.training_tree(
      variant, start if start is not None else trainer.model_params(experiment.model, jax.random.key(seed)))
  saved = checkpoints.Checkpoints(
      workdir.checkpoints(variant, seed), keep_newest=options.keep_newest, keep_best=options.keep_best,
      best_metric='cross_entropy', report=say.error)
  batches = loader.batches(
      corpus.train, batch_size=options.batch_size, length=options.length, seed=seed,
      process_index=jax.process_index(), process_count=jax.process_count())
  if saved.latest_step() is None:
    state = fitter.initialize(make)
  else:
    target = fitter.abstract_state(make)._asdict()
    restored = saved.restore(target=target)
    state = training_step.TrainState(**restored.state)
    batches.set_state(restored.data)
    say(f'continuing at step {restored.step}')
  workdir.drop_records_after(int(state.step), variant, seed)
  schedule = optimizer.learning_rate(experiment.optimizer, options.steps)
  lines = progress.Steps(say, options.steps, options.batch_size * options.length, memory_bytes)
  identity = {'variant': variant, 'seed': seed}
  run = {**identity, 'steps': options.steps, 'tokens': options.steps * options.batch_size * options.length,
         'seconds': 0.0}

  def log(step, metrics):
    run['seconds'] += metrics['seconds']
    record = lines.record(step, {**metrics, 'learning_rate': float(schedule(step - 1))})
    workdir.log({'kind': 'train', **identity, **record})

  def visit(step, state):
    sites, weights = outliers.analyze(state.params, experiment.model, corpus_probe(experiment, corpus, mesh))
    records = [('site', record) for record in sites] + [('weight', record) for record in weights]
    records += [('range', {'path': path, 'low': float(low), 'high': float(high)})
                for path, (low, high) in jax.device_get(qat.ranges(state.params)).items()]
    text = corpus.validation[0]
    score = perplexity.score(
        state.params, experiment.model, text.tokens[: _VALIDATION_WINDOWS * options.length], text.num_bytes,
        length=options.length, batch_size=config.evaluation.batch_size, mesh=mesh)
    loss = score.nats / score.predicted
    records.append(('validation', {'cross_entropy': loss, 'perplexity': score.perplexity}))
    for kind, record in records:
      workdir.log({'kind': kind, **identity, 'step': step, **record})
    return {'cross_entropy': loss}

  def save(step, state, metrics, position):
    saved.save(step, state._asdict(), metrics=metrics, data=position,
               metadata={**identity, 'model': experiment.model.to_dict()})

  hooks = trainer.Hooks(
      lambda seconds: say(f'first step after {seconds:.1f} s (compilation included)'), log, visit, save, saved.wait)
  plan = trainer.Schedule(
      options.steps, options.log_every, options.save_every, trainer.log_spaced(options.steps, options.measurements))
  state = fitter.fit(state, batches, plan, hooks, stop)
  saved.close()
  run['tokens_per_second'] = lines.throughput
  run['checkpoint'] = workdir.checkpoints(variant, seed)
  return state.params, run


def measure(experiment, corpus, params, variant, seed, results, say):
  """Evaluates a trained model at every precision and appends to `results`."""
  config, model = experiment.config, experiment.model
  mesh = sharding.data_mesh()
  static = params
  with jax.set_mesh(mesh):
    if not trees.inputs(params):
      batches = scoring.calibration_batches(
          corpus.train, config.ptq.calibration_windows, config.training.length, config.ptq.seed)
      static = driver.run(params, decoder.staged(model), experiment.recipe.steps(), batches).params
    options = {'weight_pattern': config.ptq.weight_pattern, 'group_size': config.ptq.group_size}
    for precision in experiment.precisions:
      tree = precisions.rewrite(static, precision, **options)
      for text in corpus.validation:
        score = perplexity.score(
            tree, model, text.tokens, text.num_bytes, length=config.training.length,
            batch_size=config.evaluation.batch_size, implementation=config.evaluation.implementation, mesh=mesh)
        results['evaluations'].append(scoring.record(score, precision, text.name, variant, seed, say))
    probe = corpus_probe(experiment, corpus, mesh)
    sites, _ = outliers.analyze(params, model, probe)
    results['outlier_summary'] += [{'variant': variant, 'seed': seed, **record} for record in sites]
    if seed == config.seeds[0]:
      quantized = precisions.rewrite(
          static, precisions.Precision(config.ptq.weights, experiment.qat.bits, 'static'), **options)
      results['histograms'] += [
          {'variant': variant, 'seed': seed, **record}
          for record in outliers.histograms(params, quantized, model, probe)]


def corpus_probe(experiment, corpus, mesh):
  """The batch that outliers are measured on: the first windows of the first validation text, [8, length]."""
  length = experiment.config.training.length
  rows, _ = perplexity.windows(corpus.validation[0].tokens[: 8 * length], length)
  return sharding.place_whole(mesh, rows)


def initial_params(config, model):
  """The parameters of `config.init_from`, without quantizers, or None."""
  if not config.init_from:
    return None
  source = workdirs.Model(config.init_from, config.init_variant or None)
  params = checkpoints.load_params(source.checkpoints).state['params']
  validate.validate(params, model)
  return precisions.rewrite(params, precisions.Precision())


def memory_bytes() -> int:
  """Peak memory: of the first device where it tells, else of the process."""
  statistics = jax.local_devices()[0].memory_stats() or {}
  return statistics.get('peak_bytes_in_use') or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == '__main__':
  sys.exit(runtime.launch(main))
