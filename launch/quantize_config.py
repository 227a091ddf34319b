"""What a configuration of `launch.quantize` asks for, whatever the model: its recipe, and its budget of bits."""

import dataclasses

from jaxquant import errors
from jaxquant.evaluation import precisions
from jaxquant.numerics import formats
from jaxquant.numerics import quantizers
from jaxquant.transforms import recipes
from launch import mixed_precision
from launch import settings
from launch import validation

_AXES = {'inputs': -2, 'outputs': -1}
# Keys of a mode that mean nothing in the other.
_OF_MODE = {'dynamic': ('activation_kind', 'activation_group_size', 'activation_per_tensor'),
            'static': ('align_zero', 'symmetric_ranges')}


def check(config) -> None:
  """Raises `UserError` for what is wrong with a configuration, whatever the model."""
  validation.check(config, settings.quantize())
  if config.activation_mode not in precisions.MODES:
    raise errors.UserError(f'config.activation_mode is {config.activation_mode!r}; '
                           f'there are {", ".join(precisions.MODES)}')
  if config.activation_mode == 'none' and config.activations < 16:
    raise errors.UserError(f'config.activation_mode is \'none\' and config.activations is {config.activations}: '
                           'activations that are not quantized have 16 bits')
  try:
    formats.parse(f'{config.activation_kind}8')
  except errors.UserError as error:
    raise errors.UserError(f'config.activation_kind is {config.activation_kind!r}: {error}') from None
  for name, keys in _OF_MODE.items():
    for key in keys if mode(config) not in (name, 'none') else ():
      if config[key] != (default := settings.quantize()[key]):
        raise errors.UserError(f'config.{key} is {config[key]!r}, which is for {name} activations; '
                               f'{mode(config)} ones have {default!r}')
  if config.group_along not in _AXES:
    raise errors.UserError(f'config.group_along is {config.group_along!r}; there are {", ".join(_AXES)}')


def mode(config) -> str:
  """How activations are quantized, one of `precisions.MODES`."""
  return config.activation_mode if config.activations < 16 else 'none'


def recipe(config, activation_mode: str | None) -> recipes.Recipe:
  """The recipe of a configuration; without a mode, activations are left as the tree has them."""
  activation = {'static': config.activations, 'dynamic': None}.get(activation_mode)
  if activation_mode == 'dynamic':
    activation = quantizers.DynamicQuantizer(
        formats.parse(f'{config.activation_kind}{config.activations}'), config.activation_group_size,
        config.activation_per_tensor)
  if config.two_level and config.weights == 16:
    raise errors.UserError('config.two_level is for weights that are quantized, and those of 16 bits are not')
  quantized = lambda bits: None if bits == 16 else bits
  kind, *special = config.weight_kind.partition('/')  # dint/4 of 4 bits is dint4/4
  weight = None if config.weights == 16 else _grid(
      config, f'{kind}{config.weights}{"".join(special)}', 'weight_kind and config.weights')
  methods = tuple(config.methods)
  return recipes.Recipe(
      methods=methods, options={name: config[name].to_dict() for name in methods if name in config}, weight=weight,
      allocated=config.allocation.bits is not None, weight_pattern=config.weight_pattern,
      clip_pattern=config.clip_pattern, activation=activation, site_patterns=tuple(config.site_patterns),
      values=quantized(config.value_bits), cache=quantized(config.cache_bits), ranges=config.ranges,
      percentile=config.percentile, align_zero=config.align_zero, symmetric_ranges=config.symmetric_ranges)


def budget(config) -> mixed_precision.Budget | None:
  """What a configuration asks of an allocation of bits, if it asks for one."""
  asked = config.allocation
  return None if asked.bits is None else mixed_precision.Budget(
      asked.bits, tuple(_grid(config, name, 'allocation.candidates') for name in asked.candidates), asked.score,
      config.weight_pattern)


def _grid(config, name, key):
  """The grid of the format called `name`, which a key of the configuration asks for, in the configuration's groups."""
  try:
    fmt = formats.parse(name)
  except errors.UserError as error:
    raise errors.UserError(f'config.{key}: {error}') from None
  plain = quantizers.WeightQuantizer(fmt, _AXES[config.group_along], config.group_size)
  try:
    plain = dataclasses.replace(plain, two_level=config.two_level)
  except errors.UserError as error:
    raise errors.UserError(f'config.two_level: {error}') from None
  try:
    return dataclasses.replace(plain, per_tensor=config.weight_per_tensor)
  except errors.UserError as error:
    raise errors.UserError(f'config.weight_per_tensor: {error}') from None
