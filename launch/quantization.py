"""How a float model is quantized for the comparison: to nearest, with learned ranges, or calibrated or dynamic ones."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxquant.calibration import driver
from jaxquant.evaluation import precisions
from jaxquant.models import config as model_config
from jaxquant.models import staging
from jaxquant.transforms import recipes
from launch import calibration


@dataclasses.dataclass(frozen=True)
class Quantization:
  """What a configuration of `launch.train` says of it.

  Attributes:
    weights, weight_pattern, group_size: bits and groups of the kernels' codes, and which linears have them.
    activations: bits of the activations' codes.
    site_patterns: sites that have them, regular expressions on the whole name; none leaves all activations alone.
    ranges, percentile: how static ranges are calibrated (transforms.activation_ranges), where none were learned.
    windows, seed: the sample of windows that they are calibrated on.
  """

  weights: int
  weight_pattern: str
  group_size: int | None
  activations: int
  site_patterns: tuple[str, ...]
  ranges: str
  percentile: float
  windows: int
  seed: int

  @classmethod
  def of(cls, config: Mapping[str, Any]) -> 'Quantization':
    """That of a configuration as `settings.train` makes it, or of its JSON values; raises KeyError for any other."""
    ptq, qat = config['ptq'], config['qat']
    return cls(
        ptq['weights'], ptq['weight_pattern'], ptq['group_size'], qat['bits'],
        tuple(pattern for pattern, _ in qat['ranges']), ptq['ranges'], ptq['percentile'], ptq['calibration_windows'],
        ptq['seed'])

  def named(self, names: Sequence[str] = ()) -> tuple[precisions.Precision, ...]:
    """Those called `names`; the standard ones by default, as far as there are sites to quantize."""
    found = precisions.named(names, self.weights, self.activations)
    return found if names or self.site_patterns else tuple(each for each in found if each.mode == 'none')

  def recipe(self, activations: int | None = None) -> recipes.Recipe:
    """The recipe that calibrates static ranges, of `activations` bits where they are to be others."""
    return recipes.Recipe(
        weight=None, activation=activations or self.activations, site_patterns=self.site_patterns, ranges=self.ranges,
        percentile=self.percentile)

  def batches(self, tokens: Any, length: int) -> list:
    """The sample of windows of `tokens` to calibrate on; raises `UserError` if there are too few."""
    return calibration.batches(tokens, self.windows, length, self.seed)

  def calibrated(
      self, params: Any, model: model_config.TransformerConfig, batches: Sequence[Any],
      activations: int | None = None) -> Any:
    """The float tree `params` with static ranges, calibrated on `batches` (int32 [sequences, length] each)."""
    steps = self.recipe(activations).steps(staging.model_sites(model))
    return driver.run(params, staging.staged(model), steps, batches).params

  def rewritten(
      self, params: Any, model: model_config.TransformerConfig, precision: precisions.Precision, learned: bool) -> Any:
    """The float tree `params`, with static ranges where `precision` asks for them, at that precision.

    Args:
      params, precision: as for `evaluation.precisions.rewrite`.
      model: whose sites get dynamic ranges where the tree has no static ones.
      learned: whether the tree's ranges were learned in training.
    """
    sites = self.recipe().sites(site.name for site in staging.model_sites(model))
    return precisions.rewrite(
        params, precision, learned=learned, weight_pattern=self.weight_pattern, group_size=self.group_size, sites=sites)
