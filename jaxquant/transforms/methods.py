"""Every method by its name: what it owns, what it is told of the numbers to come, and how its step runs by default."""

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxquant import errors
from jaxquant.calibration import plan
from jaxquant.transforms import adadim
from jaxquant.transforms import aqas
from jaxquant.transforms import awq
from jaxquant.transforms import clip_search
from jaxquant.transforms import gptq
from jaxquant.transforms import norm_fusion
from jaxquant.transforms import outlier_suppression
from jaxquant.transforms import round_to_nearest
from jaxquant.transforms import smooth_quant

# What `Method.told` may name. No configuration can spell these, so they are no options of one.
_NUMBERS = ('weight', 'activation')


class Method(NamedTuple):
  """A method.

  Attributes:
    factory: (claim, ..., options) -> Transform.
    owns: `sites`, if it folds scales and shifts there, or `linears`.
    told: arguments by which it learns of the numbers to come: `weight`, the grid of the kernels, and `activation`, the
      quantizer of the activations that they meet. What its paper's search does not see is left out.
    rounds: whether it leaves codes behind.
    norms_only: whether it folds only at sites that norms produce.
    chooses: whether it leaves the grid to round to behind, in the tree.
    by_site: {the option of a configuration, (pattern, value) pairs: the factory's option that sites so have a value of
      their own of}, of one that folds.
    stream, schedule: of its step, as its paper or its code has them.
  """

  factory: Callable[..., Any]
  owns: str
  told: tuple[str, ...] = ('weight',)
  rounds: bool = False
  norms_only: bool = False
  chooses: bool = False
  by_site: Mapping[str, str] = types.MappingProxyType({})
  stream: str = 'float'
  schedule: str = 'block'

  def parameters(self) -> dict[str, Any]:
    """What the factory takes beside the claim, with the defaults."""
    parameters = list(inspect.signature(self.factory).parameters.values())[1:]
    return {p.name: p.default for p in parameters}

  def options(self) -> dict[str, Any]:
    """What a configuration may say of it, with defaults: the factory's options, and those `of_recipe`."""
    own = {name: default for name, default in self.parameters().items() if name not in _NUMBERS}
    return own | self.of_recipe()

  def of_recipe(self) -> dict[str, Any]:
    """The options that the recipe reads, and not the factory, with defaults."""
    return ({'site_pattern': r'.*'} if self.owns == 'sites' else {}) | dict.fromkeys(self.by_site, ())

  def bound(self, told: dict[str, Any], options: dict[str, Any]) -> plan.Factory:
    """The factory with everything but the claim; options may replace what it is told."""
    return functools.partial(self.factory, **{**{name: told[name] for name in self.told}, **options})


METHODS = {
    'norm_fusion': Method(norm_fusion.norm_fusion, 'sites', (), norms_only=True),
    'smooth_quant': Method(smooth_quant.smooth_quant, 'sites', _NUMBERS, norms_only=True,
                           by_site={'exponents': 'exponent'}),
    'awq': Method(awq.awq, 'sites'),
    'aqas': Method(aqas.aqas, 'sites', _NUMBERS),
    'outlier_suppression': Method(
        outlier_suppression.outlier_suppression, 'sites', _NUMBERS, stream='quantized', schedule='sequential'),
    'clip_search': Method(clip_search.clip_search, 'linears'),
    'adadim': Method(adadim.adadim, 'linears', chooses=True),
    'round_to_nearest': Method(round_to_nearest.round_to_nearest, 'linears', rounds=True),
    'gptq': Method(gptq.gptq, 'linears', rounds=True, stream='quantized', schedule='sequential'),
}


def get(name: str) -> Method:
  """The method called `name`; raises `UserError` for a name that is none."""
  if name not in METHODS:
    raise errors.UserError(f'there is no method {name!r}, only {", ".join(METHODS)}')
  return METHODS[name]
