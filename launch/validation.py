"""Is a configuration complete, are its values of the right types and within bounds? Asked before anything is done."""

import math
import re
from typing import Any, NamedTuple

import ml_collections

from jaxquant import errors
from jaxquant.transforms import methods


class _Bounds(NamedTuple):
  """Values from `low` to `high`, the ends included unless they are `open`."""

  low: float
  high: float = math.inf
  open_low: bool = False
  open_high: bool = False

  def hold(self, value: float) -> bool:
    """Whether `value` is one of them."""
    above = self.low < value if self.open_low else self.low <= value
    return above and (value < self.high if self.open_high else value <= self.high)

  def __str__(self):
    low = f'{"above" if self.open_low else "at least"} {self.low}'
    return low if self.high == math.inf else f'{low} and {"below" if self.open_high else "at most"} {self.high}'


_COUNT, _NOT_NEGATIVE, _POSITIVE = _Bounds(1), _Bounds(0), _Bounds(0, open_low=True)
_SEED = _Bounds(0, 2**32 - 1)
# What the elements of a tuple are, and bounds of values, by the name of the key within `config` or `config.ptq`.
_ELEMENTS = {
    'variants': str, 'seeds': int, 'data.train': str, 'evaluation.precisions': str, 'qat.ranges': tuple,
    'site_patterns': str, 'methods': str, 'allocation.candidates': str, 'smooth_quant.exponents': tuple,
}
_BOUNDS = {
    **{f'model.{key}': _COUNT for key in (
        'width', 'layers', 'heads', 'kv_heads', 'head_dim', 'feed_forward', 'max_length', 'sliding_window',
        'embedding_width', 'rope_original_length')},
    **{f'model.{key}': _POSITIVE for key in (
        'norm_epsilon', 'rope_theta', 'rope_factor', 'rope_low_factor', 'rope_high_factor')},
    **{f'model.{key}': _NOT_NEGATIVE for key in ('mask_token', 'token_types')},
    'model.vocabulary': _Bounds(1, 2**24),
    **{f'training.{key}': _COUNT for key in (
        'steps', 'batch_size', 'length', 'microbatches', 'log_every', 'save_every', 'measurements', 'keep_newest')},
    'training.keep_best': _NOT_NEGATIVE,
    # Of no epsilon, a moment that is zero leaves 0 / 0; a norm clipped to zero leaves no gradient.
    **{f'optimizer.{key}': _POSITIVE for key in ('learning_rate', 'epsilon', 'clip_norm')},
    **{f'optimizer.{key}': _NOT_NEGATIVE for key in (
        'warmup_steps', 'weight_decay', 'range_multiplier', 'range_decay')},
    **{f'optimizer.{key}': _Bounds(0, 1, open_high=True) for key in ('b1', 'b2')},
    'optimizer.final_fraction': _Bounds(0, 1),
    'qat.bits': _Bounds(2, 8),
    **{f'qat.{key}': _COUNT for key in ('weight_group_size', 'weight_start')},
    **{f'kurtosis.{key}': _COUNT for key in ('stride', 'every')},
    **{f'{group}.weight': _NOT_NEGATIVE for group in ('kurtosis', 'kure')},
    'kure.target': _Bounds(1),  # the least that a kurtosis can be
    **{key: _COUNT for key in (
        'evaluation.batch_size', 'calibration_windows', 'group_size', 'activation_group_size', 'gptq.block_size')},
    'calibration_length': _Bounds(2),
    **{f'{name}.{key}': _COUNT for name, method in methods.METHODS.items()
       for key in ('tokens', 'steps') if key in method.options()},
    **{f'{name}.candidates': _Bounds(2) for name, method in methods.METHODS.items()
       if 'candidates' in method.options()},
    'smooth_quant.exponent': _Bounds(0, 1),
    'gptq.damping': _POSITIVE,
    'clip_search.least': _Bounds(0, 1, open_high=True),
    'percentile': _Bounds(50, 100, open_low=True),
    'seed': _SEED,
}
# Bits of codes, or 16 for none.
_BITS = ('weights', 'activations', 'value_bits', 'cache_bits', 'qat.weight_bits')
# Tuples of (pattern, number) pairs, and the bounds of their numbers.
_WITH_NUMBERS = {'qat.ranges': _POSITIVE, 'smooth_quant.exponents': _Bounds(0, 1)}
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
    raise errors.UserError(
        f'config.{path}{unknown[0]} is no setting of this command; launch/settings.py lists them, by command')
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
    if key == 'seeds' and not _SEED.hold(element):
      raise errors.UserError(f'config.{name} holds {element}; a seed must be {_SEED}')
  if isinstance(value, float) and not math.isfinite(value):
    raise errors.UserError(f'config.{name} is {value}')
  bounds = _BOUNDS.get(key)
  if value is not None and bounds is not None and not bounds.hold(value):
    raise errors.UserError(f'config.{name} is {value}; it must be {bounds}')
  if key in _BITS and not (2 <= value <= 8 or value == 16):
    raise errors.UserError(f'config.{name} is {value}; there are 2 to 8 bits, and 16 for none')
  last = re.split('[._]', key)[-1]
  for pattern in (value,) if last == 'pattern' else value if last == 'patterns' or key in _WITH_NUMBERS else ():
    _check_pattern(name, pattern, _WITH_NUMBERS.get(key))


def _check_pattern(name: str, pattern: Any, bounds: _Bounds | None) -> None:
  """Checks a regular expression, or one with a number: the width of a range, or an exponent."""
  if isinstance(pattern, tuple):
    if [type(part) for part in pattern] not in ([str, float], [str, int]):
      raise errors.UserError(f'config.{name} holds {pattern!r}, not a pattern and a number')
    pattern, number = pattern
    if not bounds.hold(number):
      raise errors.UserError(f'config.{name} has {number} for {pattern!r}; it must be {bounds}')
  try:
    re.compile(pattern)
  except re.error as error:
    raise errors.UserError(f'config.{name}: {pattern!r} is not a regular expression ({error})') from error
