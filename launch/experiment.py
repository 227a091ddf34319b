"""An experiment: a configuration of `launch.train` with its parts made and checked, before any long work."""

import functools
from typing import Any

import jax

from jaxquant import errors
from jaxquant.evaluation import precisions
from jaxquant.layers import sharding
from jaxquant.models import config as model_config
from jaxquant.models import staging
from jaxquant.models import validate
from jaxquant.numerics import trees
from jaxquant.training import optimizer
from jaxquant.training import qat
from jaxquant.training import regularizers
from jaxquant.training import step as training_step
from launch import corpora
from launch import models
from launch import quantization
from launch import scoring
from launch import settings
from launch import validation
from launch import workdir

QUANTIZED, REGULARIZED = workdir.QUANTIZED, ('kurtosis', 'both')


class Experiment:
  """The parts that a configuration names.

  Attributes:
    config: the configuration.
    mesh: all devices.
    model, optimizer, qat, quantization, precisions: what the groups of the configuration describe.
    source: the tree of `config.init_from`, or None.
  """

  def __init__(self, config: Any):
    """Raises `UserError` or `CheckpointError` for whatever cannot work."""
    validation.check(config, settings.train())
    self.config = config
    self.mesh = sharding.data_mesh()
    self.model = model_config.TransformerConfig.from_dict({**config.model.to_dict(), 'max_length': max(
        config.model.max_length, config.training.length)})
    self.optimizer = optimizer.OptimizerConfig(**config.optimizer)
    self.qat = qat.QATConfig(**config.qat)
    self.quantization = quantization.Quantization.of(config)
    self.quantization.recipe()
    self.precisions = self._precisions()
    self._site_names = tuple(site.name for site in staging.model_sites(self.model))
    self._regularizers = tuple(
        make(**options) if options.weight else None
        for make, options in (
            (regularizers.OutputKurtosis, config.kurtosis), (regularizers.WeightKurtosis, config.kure)))
    self._check()
    with jax.set_mesh(self.mesh):
      self.source = _source(config, self.model)
    corpora.check(config.data, self.tokenizer, self.model.text_vocabulary)

  @property
  def tokenizer(self) -> str:
    """The tokenizer to use: that of the configuration, or of the model to start from; empty to train one."""
    return self.config.data.tokenizer or self.config.init_from

  def objective(self, variant: str) -> training_step.Objective:
    """The loss of a variant."""
    penalties = self._regularizers if variant in REGULARIZED else (None, None)
    return training_step.Objective(
        self.model, *penalties, weight_start=self.qat.weight_start if self._rounds(variant) else 1)

  def training_tree(self, variant: str, params: Any, ranges: Any = None) -> Any:
    """The float tree as a variant trains it; `ranges` to start from, by site, as `qat.prepare` takes them."""
    return qat.prepare(params, self.qat, self._site_names, ranges) if variant in QUANTIZED else params

  def calibrates(self) -> bool:
    """Whether some tree of this experiment needs calibrated ranges, having learned none."""
    unlearned = self.source is not None and not qat.ranges(self.source)
    return bool(self.qat.ranges and (unlearned or set(self.config.variants) - set(QUANTIZED)))

  def calibration_batches(self, tokens) -> list:
    """A sample of the training tokens to calibrate on; raises `UserError` if there are too few."""
    try:
      return self.quantization.batches(tokens, self.config.training.length)
    except errors.UserError as error:
      raise errors.UserError(f'config.ptq.calibration_windows: {error}') from error

  def static_ranges(self, params: Any, tokens) -> Any:
    """The float tree with static ranges, calibrated on a sample of the training tokens."""
    return self.quantization.calibrated(params, self.model, self.calibration_batches(tokens))

  def starting_tree(self, variant: str, tokens) -> Any:
    """`source` as a variant trains it on, with its learned ranges or else calibrated ones."""
    learned = qat.ranges(self.source)
    params = precisions.rewrite(
        self.source, precisions.Precision(), learned=bool(learned) and variant not in QUANTIZED)
    if variant in QUANTIZED and self.qat.ranges and not learned:
      learned = qat.ranges(self.static_ranges(params, tokens))
    return self.training_tree(variant, params, learned)

  def _rounds(self, variant):
    """Whether a variant rounds kernels in training."""
    return variant in QUANTIZED and self.qat.weight_bits < 16

  def _precisions(self) -> tuple[precisions.Precision, ...]:
    try:
      found = self.quantization.named(self.config.evaluation.precisions)
    except errors.UserError as error:
      raise errors.UserError(f'config.evaluation.precisions: {error}') from error
    for precision in found:
      if precision.mode == 'static' and precision.activations != self.qat.bits:
        raise errors.UserError(f'config.evaluation.precisions: {precision.name!r} needs ranges of other bits than '
                               f'config.qat.bits, {self.qat.bits}')
    return found

  def _check(self):
    config = self.config
    for key, known in (('variants', workdir.VARIANTS), ('seeds', None)):
      values = config[key]
      if not values or len(set(values)) < len(values):
        raise errors.UserError(f'config.{key} is {values}: name at least one, and none twice')
      if known and (unknown := [value for value in values if value not in known]):
        raise errors.UserError(f'config.{key}: there is no {unknown[0]!r}, only {", ".join(known)}')
    if config.init_variant and not config.init_from:
      raise errors.UserError(f'config.init_variant is {config.init_variant!r}, but config.init_from names no model')
    scoring.check_implementation(config.evaluation.implementation, 'config.evaluation.implementation')
    devices, options = self.mesh.devices.size, config.training
    if options.batch_size % (devices * options.microbatches):
      raise errors.UserError(f'config.training.batch_size {options.batch_size} does not divide over {devices} devices '
                             f'and {options.microbatches} microbatches')
    abstract = validate.abstract_params(self.model)
    jax.eval_shape(functools.partial(qat.prepare, config=self.qat, site_names=self._site_names), abstract)
    linears = trees.linears(abstract)
    with_outputs = [path for path in linears if not trees.is_table(path)]
    for group, paths in (('kurtosis', with_outputs), ('kure', linears)):
      if not trees.matching(config[group].pattern, paths):
        raise errors.UserError(f'config.{group}.pattern {config[group].pattern!r} matches no linear layer')
    scoring.check_weights(abstract, config.ptq.weights, config.ptq.weight_pattern, config.ptq.group_size)
    self._check_sites()
    self._check_rounding()

  def _check_sites(self):
    """Refuses what needs quantized sites where the configuration names none."""
    if self.qat.ranges:
      return
    if needing := [precision.name for precision in self.precisions if precision.mode != 'none']:
      raise errors.UserError(f'config.qat.ranges is empty, but {needing[0]} of config.evaluation.precisions quantizes '
                             'the sites that it names')
    if self.qat.weight_bits == 16 and (idle := [variant for variant in self.config.variants if variant in QUANTIZED]):
      raise errors.UserError(f'config.qat.ranges is empty and config.qat.weight_bits is 16, so that the variant '
                             f'{idle[0]} would quantize nothing')

  def _check_rounding(self):
    """Refuses to round kernels in training never, or on another grid than that on which they are evaluated."""
    config, rounding = self.config, [variant for variant in self.config.variants if self._rounds(variant)]
    if not rounding:
      return
    if self.qat.weight_start > config.training.steps:
      raise errors.UserError(
          f'config.qat.weight_start is {self.qat.weight_start}, but there are {config.training.steps} training steps '
          f'(config.training.steps): {rounding[0]} would never round its kernels')
    if any(precision.weights < 16 for precision in self.precisions):
      for trained, evaluated in (('weight_bits', 'weights'), ('weight_group_size', 'group_size')):
        if config.qat[trained] != config.ptq[evaluated]:
          raise errors.UserError(
              f'{rounding[0]} would round its kernels in training on another grid than in the evaluation: '
              f'config.qat.{trained} is {config.qat[trained]}, config.ptq.{evaluated} is {config.ptq[evaluated]}')


def _source(config, model) -> Any:
  if not config.init_from:
    return None
  try:
    source = models.find(config.init_from, config.init_variant or None)
  except errors.UserError as error:
    raise errors.UserError(f'config.init_from: {error}') from error
  params, _ = source.load()
  try:
    validate.validate(params, model)
  except errors.CheckpointError as error:  # as it fits the model that it was saved of, it is not broken
    raise errors.UserError(f'config.init_from: {source.path} holds another model than config.model: {error}') from error
  if path := models.quantized_linear(params):
    raise errors.UserError(
        f'config.init_from: {source.path} holds integer codes, as in {path}, which cannot be trained')
  return params
