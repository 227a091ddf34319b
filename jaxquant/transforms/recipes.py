"""Recipes: the driver's steps for the usual settings, so that a launcher names numbers and a library user may start here."""

import dataclasses
import functools

from jaxquant import errors
from jaxquant.calibration import driver
from jaxquant.numerics import formats
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.transforms import activation_ranges
from jaxquant.transforms import round_to_nearest


@dataclasses.dataclass(frozen=True)
class Recipe:
  """Post-training quantization by rounding and calibrated ranges.

  Attributes:
    weights: bits of symmetric weight codes; 16 leaves kernels as they are.
    weight_pattern: linears to round, a regular expression on the whole path.
    group_size: inputs that share a weight scale; None: one per output channel.
    activations: bits; 16 leaves activations as they are.
    site_patterns: sites that get a calibrated static range, regular expressions on the whole name.
    ranges, percentile: see `activation_ranges`.
  """

  weights: int = 4
  weight_pattern: str = r'layers/.*'
  group_size: int | None = None
  activations: int = 4
  site_patterns: tuple[str, ...] = (r'layers/.*',)
  ranges: str = 'minmax'
  percentile: float = 99.99

  def __post_init__(self):
    if self.ranges not in activation_ranges.METHODS:
      raise errors.UserError(f'ptq.ranges is {self.ranges!r}; there are {", ".join(activation_ranges.METHODS)}')

  def sites(self, names) -> tuple[str, ...]:
    """Those of the site names that a pattern matches."""
    names = tuple(names)
    return tuple(name for name in names if any(trees.matching(pattern, (name,)) for pattern in self.site_patterns))

  def steps(self) -> list[driver.Step]:
    """Ranges of the float model's activations first, then weights."""
    steps = []
    if self.activations < 16:
      calibrate = functools.partial(
          activation_ranges.activation_ranges, bits=self.activations, method=self.ranges, percentile=self.percentile)
      steps.append(driver.Step('sites', [(pattern, calibrate) for pattern in self.site_patterns], every=False))
    if self.weights < 16:
      grid = quantizers.WeightQuantizer(formats.IntFormat(self.weights), group_size=self.group_size)
      rounding = functools.partial(round_to_nearest.round_to_nearest, weight=grid)
      steps.append(driver.Step('linears', [(self.weight_pattern, rounding)], every=False))
    return steps
