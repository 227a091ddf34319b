"""Quantized trees of the models in tests/model_directories.py."""

import pathlib

from jaxquant.calibration import driver
from jaxquant.interop import source
from jaxquant.models import staging
from jaxquant.numerics import formats
from jaxquant.numerics import quantizers
from jaxquant.transforms import recipes
from tests import model_directories


def quantized(folder: pathlib.Path, weights: str = 'uint4', group_size: int | None = 16, *, family: str = 'llama',
              activations: str | None = None, pattern: str = r'layers/.*', **changes):
  """Writes a model of `family` to `folder`: (its source, its tree rounded to the nearest codes)."""
  opened = source.DirectorySource(model_directories.write(folder, family, **changes))
  recipe = recipes.Recipe(
      weight=quantizers.WeightQuantizer(formats.parse(weights), group_size=group_size), weight_pattern=pattern,
      activation=quantizers.DynamicQuantizer(formats.parse(activations)) if activations else None)
  steps = recipe.steps(staging.model_sites(opened.config))
  return opened, driver.run(opened, staging.staged(opened.config), steps, []).params
