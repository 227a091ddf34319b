"""Is a configuration complete, are its values of the right types and within bounds? Asked before anything is done."""

import math
import re
from typing import Any

import ml_collections

from jaxquant import errors
from jaxquant.transforms import methods

# What the elements of a tuple are, and least and greatest values, by the name of the key within `config` or `config.ptq`.
_ELEMENTS = {
    'variants': str, 'seeds': int, 'data.train': str, 'evaluation.precisions': str, 'qat.ranges': tuple,
    'site_patterns': str, 'methods': str, 'allocation.candidates': str,
}
_BOUNDS = {
    **{f'model.{key}': (1, None) for key in (
        'width', 'layers', 'heads', 'kv_heads', 'head_dim', 'feed_forward', 'max_length', 'sliding_window',
        'embedding_width', 'rope_original_length')},
    'model.mask_token': (0, None),
    'model.vocabulary': (1, 2**24),
    **{f'training.{key}': (1, None) for key in (
        'steps', 'batch_size', 'length', 'microbatches', 'log_every', 'save_every', 'measurements', 'keep_newest')},
    'training.keep_best': (0, None),
    'optimizer.warmup_steps': (0, None),
    'qat.bits': (2, 8),
    'qat.weight_group_size': (1, None),
    'qat.weight_start': (1, None),
    'kurtosis.stride': (1, None),
    'kurtosis.every': (1, None),
    'evaluation.batch_size': (1, None),
    'calibration_windows': (1, None),
    'group_size': (1, None),
    'activation_group_size': (1, None),
    'calibration_length': (2, None),
    'gptq.block_size': (1, None),
    **{f'{name}.{key}': (1, None) for name, method in methods.METHODS.items()
       for key in ('candidates', 'tokens', 'steps') if key in method.options()},
    'percentile': (50, 100),
    'seed': (0, None),
}
# Bits of codes, or 16 for none.
_BITS = ('weights', 'activations', 'value_bits', 'qat.weight_bits')
# Groups whose keys are names of the user's choice, with the type of their values.
_NAMED = {'data.validation': (str, tuple)}


def check(config: ml_collections.ConfigDict, defaults: ml_collections.ConfigDict, path: str = '') -> None:
  """Raises `UserError` naming the first key of `config` that is missing, unknown, of a wrong type or out of bounds.

  Args:
    config: what a configuration file returned, changed by flags.
    defaults: every key (launch.settings); one whose default is None may be None, or of the type that it stands for.
    path: of `config` within the whole, with a dot at its end.
  """
  if unknown := [key for key in config if key not in defaults]:
    raise errors.UserError(f'config.{path}{unknown[0]} is no setting; launch/settings.py lists them all')
  for key in defaults:
    name, default = path + key, defaults[key]
    if key not in config:
      raise errors.UserError(f'config.{name} is missing: a configuration starts from a function of launch.settings')
    value = config[key]
    if name in _NAMED:
      for label in value:
        _check_type(f'{name}.{label}', value[label], _NAMED[name])
    elif isinstance(default, ml_collections.ConfigDict):
      _check_type(name, value, (ml_collections.ConfigDict,))
      check(value, default, f'{name}.')
    else:
      types = (defaults.get_type(key),) if default is not None else (defaults.get_type(key), type(None))
      _check_type(name, value, (*types, int) if float in types else types)
      _check_value(name, name.removeprefix('ptq.'), value)


def _check_type(name: str, value: Any, types: tuple[type, ...]) -> None:
  if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
    raise errors.UserError(f'config.{name} is {value!r}, not of type {types[0].__name__}')


def _check_value(name: str, key: str, value: Any) -> None:
  """Checks what a tuple holds, bounds, bits and regular expressions; `key` is the name without a leading `ptq.`."""
  for element in value if isinstance(value, tuple) and key in _ELEMENTS else ():
    _check_type(name, element, (_ELEMENTS[key],))
  if isinstance(value, float) and not math.isfinite(value):
    raise errors.UserError(f'config.{name} is {value}')
  low, high = _BOUNDS.get(key, (None, None))
  if value is not None and low is not None and not low <= value <= (value if high is None else high):
    raise errors.UserError(
        f'config.{name} is {value}, ' + (f'below {low}' if high is None else f'not between {low} and {high}'))
  if key in _BITS and not (2 <= value <= 8 or value == 16):
    raise errors.UserError(f'config.{name} is {value}; there are 2 to 8 bits, and 16 for none')
  patterns = {'pattern': (value,), 'patterns': value, 'ranges': value}.get(re.split('[._]', key)[-1], ())
  for pattern in patterns if key != 'ranges' else ():
    _check_pattern(name, pattern)


def _check_pattern(name: str, pattern: Any) -> None:
  """Checks a regular expression, or one with the width of a range."""
  if isinstance(pattern, tuple):
    if [type(part) for part in pattern] not in ([str, float], [str, int]):
      raise errors.UserError(f'config.{name} holds {pattern!r}, not a pattern and a width')
    pattern = pattern[0]
  try:
    re.compile(pattern)
  except re.error as error:
    raise errors.UserError(f'config.{name}: {pattern!r} is not a regular expression ({error})') from error
