"""Models to export: quantized trees of the directories in tests/model_directories.py, and of configurations of ours."""

import pathlib
from pydoc_data import topics

from jaxquant.calibration import driver
from jaxquant.data import tokenizers
from jaxquant.interop import source
from jaxquant.models import config as model_config
from jaxquant.models import staging
from jaxquant.numerics import formats
from jaxquant.numerics import quantizers
from jaxquant.transforms import recipes
from tests import model_directories

_trees = {}  # what `quantized` has made, by its arguments


def quantized(folder: pathlib.Path, weights: str = 'uint4', group_size: int | None = 16, *, family: str = 'llama',
              activations: str | None = None, pattern: str = r'layers/.*', **changes):
  """Writes a model of `family` to `folder`: (its source, its tree rounded to the nearest codes, not to be changed)."""
  opened = source.DirectorySource(model_directories.write(folder, family, **changes))
  made = family, repr(changes), weights, group_size, activations, pattern
  if made not in _trees:
    _trees[made] = rounded(opened.config, opened, weights, group_size, activations, pattern)
  return opened, _trees[made]


def rounded(model: model_config.TransformerConfig, params, weights: str, group_size: int | None = 16,
            activations: str | None = None, pattern: str = r'layers/.*') -> dict:
  """The tree `params` of a model, or of a source, rounded to the nearest codes, with dynamic activations."""
  recipe = recipes.Recipe(
      weight=quantizers.WeightQuantizer(formats.parse(weights), group_size=group_size), weight_pattern=pattern,
      activation=quantizers.DynamicQuantizer(formats.parse(activations)) if activations else None)
  return driver.run(params, staging.staged(model), recipe.steps(staging.model_sites(model)), []).params


def tokenizer(size: int) -> tokenizers.Tokenizer:
  """A tokenizer of `size` tokens, of the kind that models which are trained here have."""
  return tokenizers.Tokenizer.train([topics.topics['strings']], size)
