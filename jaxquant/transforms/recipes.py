"""Recipes: the driver's steps for named methods and numbers, so that a launcher names them and a library user may start
here: folds first, then ranges of activations, then weights, each observing what became of the model before it."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxquant import errors
from jaxquant.calibration import driver
from jaxquant.calibration import sites as sites_lib
from jaxquant.numerics import formats
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.transforms import activation_ranges
from jaxquant.transforms import dynamic_ranges
from jaxquant.transforms import methods as methods_lib


@dataclasses.dataclass(frozen=True)
class Recipe:
  """Post-training quantization.

  Attributes:
    methods: names out of `methods.METHODS`, in order; those that fold come before those that own linears. None for
      rounding to nearest, or for none where kernels stay as they are.
    options: {name of a method: its options}, where they are not the defaults. One that folds also has `site_pattern`:
      the sites, out of those below, at which it does. `smooth_quant` also has `exponents`: (pattern, exponent) pairs,
      of which a site gets the first that matches its whole name, and the `exponent` if none does.
    weight: the grid of the kernels; None leaves them as they are.
    allocated: whether kernels are rounded to grids that stand in the tree by then, such as an allocation of bits writes
      (`transforms.allocation`); folds are judged with `weight` still.
    weight_pattern: linears to quantize, a regular expression on the whole path.
    clip_pattern: those of them that `clip_search` clamps.
    activation: bits of static ranges for the whole tensor; or a quantizer of dynamic ones; None for neither.
    site_patterns: sites that get it, and at which methods fold if something can be folded there: regular expressions on
      the whole name.
    values: bits of attention's values, static per channel (the value operand of arXiv:2311.05161); None for none.
    cache: bits of attention's keys and values, symmetric, on a range for each head of each token; None for none. A
      cache holds those of 8 bits as codes (layers.cache). Excludes `values`.
    ranges, percentile, align_zero, symmetric_ranges: of static ranges, see `activation_ranges`.
  """

  methods: tuple[str, ...] | None = None
  options: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
  weight: quantizers.WeightQuantizer | None = quantizers.WeightQuantizer(formats.IntFormat(4))
  allocated: bool = False
  weight_pattern: str = r'layers/.*'
  clip_pattern: str = r'.*'
  activation: int | quantizers.DynamicQuantizer | None = 4
  site_patterns: tuple[str, ...] = (r'layers/.*',)
  values: int | None = None
  cache: int | None = None
  ranges: str = 'minmax'
  percentile: float = 99.99
  align_zero: bool = False
  symmetric_ranges: bool = False

  def __post_init__(self):
    if self.methods is None:
      object.__setattr__(self, 'methods', () if self.weight is None else ('round_to_nearest',))
    if self.ranges not in activation_ranges.METHODS:
      raise errors.UserError(f'ranges is {self.ranges!r}; there are {", ".join(activation_ranges.METHODS)}')
    named = [methods_lib.get(name) for name in self.methods]
    kinds = [method.owns for method in named]
    if kinds != sorted(kinds, key=['sites', 'linears'].index):
      raise errors.UserError(f'methods {", ".join(self.methods)}: those that fold at sites must come before the others')
    if self.weight is not None and [method.rounds for method in named] != [False] * (len(named) - 1) + [True]:
      last = ', '.join(name for name, method in methods_lib.METHODS.items() if method.rounds)
      raise errors.UserError(f'methods {", ".join(self.methods)}: exactly the last one must round, one of {last}')
    if self.allocated and self.weight is None:
      raise errors.UserError('an allocation of bits is for weights that are quantized, and those of 16 bits are not')
    if self.allocated and (choosing := [name for name in self.methods if methods_lib.get(name).chooses]):
      raise errors.UserError(f'{choosing[0]} chooses the grids that an allocation of bits chooses, too: leave one out')
    if self.weight is None and 'linears' in kinds:
      raise errors.UserError(f'{self.methods[kinds.index("linears")]} is for weights that are quantized, and those of '
                             '16 bits are not: leave it out of the methods')
    if self.values is not None and self.cache is not None:
      raise errors.UserError(f'values of attention get one range: values of {self.values} bits have those of channels, '
                             f'and a cache of {self.cache} bits has its own')
    self._check_options()
    patterns = {'weight_pattern': (self.weight_pattern,), 'clip_pattern': (self.clip_pattern,),
                'site_patterns': self.site_patterns,
                **{f'{name}.site_pattern': (self._given(name, 'site_pattern'),) for name, _ in self._named('sites')},
                **{f'{name}.{option}': [pattern for pattern, _ in self._given(name, option)]
                   for name, method in self._named('sites') for option in method.by_site}}
    for field, values in patterns.items():
      for pattern in values:
        _check_pattern(field, pattern)

  def _check_options(self):
    for name, options in self.options.items():
      if name not in self.methods:
        raise errors.UserError(f'there are options for {name}, which is none of the methods {", ".join(self.methods)}')
      known = {**methods_lib.get(name).parameters(), **methods_lib.get(name).options()}
      if unknown := [option for option in options if option not in known]:
        raise errors.UserError(f'{name} has no option {unknown[0]!r}, only {", ".join(known)}')

  def sites(self, names: Sequence[str]) -> tuple[str, ...]:
    """Those of the site names that a pattern matches."""
    names = tuple(names)
    return tuple(name for name in names if any(trees.matching(pattern, (name,)) for pattern in self.site_patterns))

  def steps(self, sites: Sequence[sites_lib.Site]) -> list[driver.Step]:
    """All steps for a model with `sites`, by their names from the root: `folds`, then `rounding`."""
    return self.folds(sites) + self.rounding()

  def folds(self, sites: Sequence[sites_lib.Site]) -> list[driver.Step]:
    """The steps that fold, for a model with `sites`: the tree behind them computes the same."""
    told = {'weight': self.weight, 'activation': self._judged()}
    steps = []
    for name, method in self._named('sites'):
      own = self._given(name, 'site_pattern')
      takers = trees.matching(own, self.sites(
          site.name for site in sites if site.producer and (site.reads_residual or not method.norms_only)))
      if not takers:
        raise errors.UserError(
            f'{name}: nothing can be folded at any site that site_patterns {", ".join(map(repr, self.site_patterns))} '
            f'and {name}.site_pattern {own!r} match')
      steps.append(self._step(name, self._by_site(name, list(takers)), told))
    return steps

  def rounding(self) -> list[driver.Step]:
    """The steps behind the folds: ranges of activations, then what becomes of the kernels."""
    told = {'weight': None if self.allocated else self.weight, 'activation': self._judged()}
    steps = self._activations()
    for name, method in self._named('linears') if self.weight is not None else ():
      both = rf'(?=(?:{self.clip_pattern})\Z)(?:{self.weight_pattern})'
      steps.append(self._step(name, [(both if name == 'clip_search' else self.weight_pattern, {})], told))
      if method.chooses:
        told['weight'] = None  # the methods behind it find it in the tree
    return steps

  def _named(self, owns) -> list[tuple[str, methods_lib.Method]]:
    named = [(name, methods_lib.get(name)) for name in self.methods]
    return [(name, method) for name, method in named if method.owns == owns]

  def _by_site(self, name, takers: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """(pattern, options of their own) of all sites at which a method folds."""
    found = []
    for option, one in methods_lib.get(name).by_site.items():
      for pattern, value in self._given(name, option):
        won = trees.matching(pattern, takers)
        if not won:
          raise errors.UserError(
              f'{name}.{option}: {pattern!r} matches no site that {name} folds at and that no pattern before it has')
        takers = [site for site in takers if site not in won]
        found.append((won, {one: value}))
    if takers:
      found.append((takers, {}))
    return [('|'.join(map(re.escape, won)), own) for won, own in found]

  def _given(self, name, option):
    return {**methods_lib.get(name).of_recipe(), **self.options.get(name, {})}[option]

  def _step(self, name, rules, told) -> driver.Step:
    method = methods_lib.get(name)
    of_recipe = method.of_recipe()
    options = {option: value for option, value in self.options.get(name, {}).items() if option not in of_recipe}
    rules = [(pattern, method.bound(told, options | own)) for pattern, own in rules]
    return driver.Step(method.owns, rules, every=False, stream=method.stream, schedule=method.schedule)

  def _activations(self) -> list[driver.Step]:
    steps = []
    if self.values is not None:
      values = functools.partial(activation_ranges.activation_ranges, bits=self.values, per_channel=True)
      steps.append(driver.Step('operands', [(r'(.*/)?attention/value', values)], every=False))
    if self.cache is not None:
      quantizer = quantizers.DynamicQuantizer(formats.IntFormat(self.cache))
      held = functools.partial(dynamic_ranges.dynamic_ranges, quantizer=quantizer)
      steps.append(driver.Step('operands', [(r'(.*/)?attention/(key|value)', held)], every=False))
    if self.activation is None:
      return steps
    if isinstance(self.activation, int):
      ranges = functools.partial(
          activation_ranges.activation_ranges, bits=self.activation, method=self.ranges, percentile=self.percentile,
          align_zero=self.align_zero, symmetric=self.symmetric_ranges)
    else:
      ranges = functools.partial(dynamic_ranges.dynamic_ranges, quantizer=self.activation)
    return [driver.Step('sites', [(pattern, ranges) for pattern in self.site_patterns], every=False), *steps]

  def _judged(self):
    """What stands for the activation's quantizer in a search; static ranges are those of the searched sample."""
    if not isinstance(self.activation, int):
      return self.activation
    return quantizers.DynamicQuantizer(
        formats.IntFormat(self.activation, symmetric=self.symmetric_ranges), per_tensor=True)


def _check_pattern(field, pattern):
  try:
    re.compile(pattern)
  except re.error as error:
    raise errors.UserError(f'{field}: {pattern!r} is not a regular expression ({error})') from None
