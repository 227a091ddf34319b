"""Trains the variants of an experiment, each with every seed, and measures what came of them at every precision."""

import resource
import time
from typing import Any, NamedTuple

import jax

from jaxquant.data import loader
from jaxquant.evaluation import outliers
from jaxquant.evaluation import perplexity
from jaxquant.evaluation import precisions
from jaxquant.layers import device_kernels
from jaxquant.layers import sharding
from jaxquant.numerics import trees
from jaxquant.training import checkpoints
from jaxquant.training import optimizer
from jaxquant.training import preemption
from jaxquant.training import qat
from jaxquant.training import step as training_step
from jaxquant.training import trainer
from launch import agreement
from launch import corpora
from launch import experiment as experiments
from launch import progress
from launch import scoring
from launch import workdir as workdirs

_VALIDATION_WINDOWS = 64


class Job(NamedTuple):
  """What all trainings of a launch share."""

  experiment: experiments.Experiment
  corpus: corpora.Corpus
  workdir: workdirs.Workdir
  stop: preemption.Preemption
  say: progress.Printer


def run(config: Any, path: str | None, started: float) -> None:
  """Runs an experiment, or continues it.

  Args:
    config: as `settings.train` makes it.
    path: the workdir; `runs/` and the name of the configuration by default.
    started: time.monotonic() when the launch began.
  """
  say = progress.Printer()
  experiment, workdir, results = agreement.agree(lambda: _open(config, path))
  environment = workdirs.environment()
  say(f'workdir {workdir.path}; {environment["device_count"]} x {environment["device"]}, jax {environment["jax"]}')
  corpus = corpora.load(
      config.data, experiment.tokenizer, experiment.model.text_vocabulary, workdir.path,
      config.training.batch_size * config.training.length, say.error, replace=not workdir.has_checkpoints)
  if experiment.calibrates():
    experiment.calibration_batches(corpus.train)  # now, since too small a text would fail after the training
  say(f'{len(corpus.train):,} training tokens; {experiment.model.block_parameters:,} parameters in the blocks')
  results['environment'], earlier = environment, results.get('seconds', 0.0)
  with preemption.Preemption() as stop, jax.set_mesh(experiment.mesh):
    job = Job(experiment, corpus, workdir, stop, say)
    for seed in config.seeds:
      for variant in config.variants:
        params, record = train_variant(job, variant, seed)
        found = {'runs': [record], **measure(job, params, variant, seed)}
        for key, entries in found.items():
          others = [entry for entry in results.get(key, ()) if (entry['variant'], entry['seed']) != (variant, seed)]
          results[key] = others + entries
        results['seconds'] = earlier + time.monotonic() - started
        workdir.write_results(results)
  progress.finish(workdir, results, say)


def train_variant(job: Job, variant: str, seed: int) -> tuple[Any, dict]:
  """Trains one variant with one seed, or continues it: (final parameters, record for `results.json`)."""
  experiment, workdir, say = job.experiment, job.workdir, job.say
  options, identity = experiment.config.training, {'variant': variant, 'seed': seed}
  say(f'-- {variant}, seed {seed}')
  objective = experiment.objective(variant)
  fitter = trainer.Trainer(
      objective, optimizer.make(experiment.optimizer, options.steps), experiment.mesh,
      fully_sharded=options.fully_sharded, microbatches=options.microbatches)
  batches = loader.batches(
      job.corpus.train, batch_size=options.batch_size, length=options.length, seed=seed,
      process_index=jax.process_index(), process_count=jax.process_count())
  saved = checkpoints.Checkpoints(
      workdir.checkpoints(variant, seed), keep_newest=options.keep_newest, keep_best=options.keep_best,
      best_metric=workdirs.BEST_METRIC, report=say.error)
  state, timed = _initial_state(job, variant, seed, fitter, saved, batches)
  workdir.drop_records_after(int(state.step), variant, seed)
  schedule = optimizer.learning_rate(experiment.optimizer, options.steps)
  lines = progress.Steps(say, options.steps, options.batch_size * options.length, memory_bytes, timed)

  def log(step, metrics):
    logged = lines.record(step, {**metrics, 'learning_rate': float(schedule(step - 1))})
    workdir.log({'kind': 'train', **identity, **logged})

  def visit(step, state):
    for kind, entry in _outliers(job, objective.used(state.params, step)):
      workdir.log({'kind': kind, **identity, 'step': step, **entry})

  def validate(step, state):
    entry = _validation(job, objective.used(state.params, step))
    workdir.log({'kind': 'validation', **identity, 'step': step, **entry})
    # The loss of kernels that are not rounded yet is no match for that of those that are.
    return {workdirs.BEST_METRIC: entry[workdirs.BEST_METRIC]} if objective.rounds(step) else {}

  def save(step, state, metrics, position):
    saved.save(step, state._asdict(), metrics=metrics, data=position, metadata={
        **identity, 'model': experiment.model.to_dict(), 'tokens': job.corpus.fingerprint, 'timed': lines.timed})

  hooks = trainer.Hooks(
      lambda step, seconds: say(f'compiled in {seconds:.1f} s, step {step} included'), log, visit, validate,
      save, saved.wait, lines.bar)
  plan = trainer.Schedule(
      options.steps, options.log_every, options.save_every, trainer.log_spaced(options.steps, options.measurements))
  state = fitter.fit(state, batches, plan, hooks, job.stop)
  saved.close()
  return state.params, {
      **identity, 'steps': options.steps, 'tokens': options.steps * options.batch_size * options.length,
      'seconds': lines.timed[0], 'tokens_per_second': lines.throughput,
      'checkpoint': workdir.checkpoints(variant, seed)}


def measure(job: Job, params: Any, variant: str, seed: int) -> dict[str, list[dict]]:
  """Evaluates a trained model at every precision: lists for `results.json`, by name."""
  experiment, config, model = job.experiment, job.experiment.config, job.experiment.model
  evaluations, histograms = [], []
  calibrated = experiment.qat.ranges and not trees.inputs(params)
  static = experiment.static_ranges(params, job.corpus.train) if calibrated else params
  quantized = lambda precision: experiment.quantization.rewritten(static, model, precision, learned=static is params)
  for precision in experiment.precisions:
    tree = device_kernels.prepared(quantized(precision), config.evaluation.implementation)
    for text in job.corpus.validation:
      if job.stop.requested():
        raise trainer.Interrupted(f'{variant}, seed {seed} is trained, its evaluation not finished')
      score = perplexity.score(
          tree, model, text.tokens, text.num_bytes, length=config.training.length,
          batch_size=config.evaluation.batch_size, implementation=config.evaluation.implementation,
          mesh=experiment.mesh)
      evaluations.append(scoring.record(score, precision, text.name, variant, seed, job.say))
  probe = _probe(job)
  identity = {'variant': variant, 'seed': seed}
  summary = [{**identity, **entry} for entry in outliers.analyze(params, model, probe)[0]]
  if seed == config.seeds[0]:
    activations = (experiment.qat.bits, 'static') if trees.inputs(static) else ()
    shown = quantized(precisions.Precision(config.ptq.weights, *activations))
    histograms = [{**identity, **entry} for entry in outliers.histograms(params, shown, model, probe)]
  return {'evaluations': evaluations, 'histograms': histograms, 'outlier_summary': summary}


def memory_bytes() -> int:
  """Peak memory: of the first device where it tells, else of the process."""
  statistics = jax.local_devices()[0].memory_stats() or {}
  return statistics.get('peak_bytes_in_use') or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _open(config, path):
  """The experiment, its workdir, and the results that earlier launches left there."""
  experiment = experiments.Experiment(config)
  workdir = workdirs.Workdir(
      path or f'runs/{config.name}', {**config.to_dict(), 'model': experiment.model.to_dict()})
  return experiment, workdir, workdir.read_results()


def _initial_state(job, variant, seed, fitter, saved, batches) -> tuple[training_step.TrainState, tuple]:
  """The state of the newest checkpoint, to which `batches` is set too, or else that before the first step.

  With it comes the time that was spent up to there, as `progress.Steps` counts it.
  """
  params = _initial_params(job, variant, seed, fitter)
  if saved.latest_step() is None:
    return fitter.initialize(params), (0.0, 0)
  restored = saved.restore(target=fitter.abstract_state(params)._asdict())
  if restored.metadata['tokens'] != job.corpus.fingerprint:
    raise corpora.another_text(job.workdir.path)
  batches.set_state(restored.data)
  job.say(f'continuing at step {restored.step}')
  return training_step.TrainState(**restored.state), restored.metadata['timed']


def _initial_params(job, variant, seed, fitter):
  """Random parameters, or those of `config.init_from`, as the variant trains them."""
  experiment, tokens = job.experiment, job.corpus.train
  if experiment.source is not None:
    return experiment.starting_tree(variant, tokens)
  make = lambda key: experiment.training_tree(variant, trainer.model_params(experiment.model, key))
  return fitter.compute(make, jax.random.key(seed))


def _outliers(job, params) -> list[tuple[str, dict]]:
  """Sites, kernels and ranges in the course of training: (kind, record) pairs."""
  sites, weights = outliers.analyze(params, job.experiment.model, _probe(job))
  ranges = jax.device_get(qat.ranges(params))
  return [
      *(('site', entry) for entry in sites), *(('weight', entry) for entry in weights),
      *(('range', {'path': path, 'low': float(low), 'high': float(high)}) for path, (low, high) in ranges.items())]


def _validation(job, params) -> dict:
  """The loss on the beginning of the first validation text, in the course of training."""
  experiment, text = job.experiment, job.corpus.validation[0]
  length = experiment.config.training.length
  score = perplexity.score(
      params, experiment.model, text.tokens[: _VALIDATION_WINDOWS * length], text.num_bytes, length=length,
      batch_size=experiment.config.evaluation.batch_size, mesh=experiment.mesh)
  return {'cross_entropy': score.nats / score.predicted, 'perplexity': score.perplexity}


def _probe(job):
  """The batch that outliers are measured on: the first windows of the first validation text, [8, length]."""
  length = job.experiment.config.training.length
  rows, present = perplexity.windows(job.corpus.validation[0].tokens[: 8 * length], length)
  return sharding.place_whole(job.experiment.mesh, rows[present.all(axis=1)])
