"""The perplexity of a model, and of what it is exported as, is that which transformers measures."""

import math
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from jaxquant.calibration import driver
from jaxquant.evaluation import perplexity
from jaxquant.interop import source
from jaxquant.interop import writing
from jaxquant.models import staging
from jaxquant.numerics import formats
from jaxquant.numerics import quantizers
from jaxquant.transforms import recipes
from tests import peering

_LENGTH = 32


def _perplexity(folder: pathlib.Path, tokens: np.ndarray) -> float:
  """What transformers gives the tokens, by the same windows."""
  rows = tokens.reshape(-1, _LENGTH)
  logits = peering.logits(folder, rows).astype(np.float64)[:, :-1]
  logits -= logits.max(axis=-1, keepdims=True)
  likelihoods = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
  return math.exp(-np.take_along_axis(likelihoods, rows[:, 1:, None], axis=-1).mean())


@peering.needed
class PerplexityTest(parameterized.TestCase):

  @parameterized.parameters('llama3', 'opt', 'bloom')
  def test_of_a_float_model_and_of_its_export(self, family):
    opened = source.DirectorySource(peering.saved(family))
    tokens = peering.tokens(6, _LENGTH).reshape(-1)
    recipe = recipes.Recipe(weight=quantizers.WeightQuantizer(formats.parse('int4'), group_size=16), activation=None)
    steps = recipe.steps(staging.model_sites(opened.config))
    params = driver.run(opened, staging.staged(opened.config), steps, []).params
    folder = writing.write(pathlib.Path(self.create_tempdir().full_path) / 'exported', params, opened.directory,
                           'compressed-tensors')
    scores = []
    for model, path in ((opened, peering.saved(family)), (source.DirectorySource(folder), folder)):
      score = perplexity.score(model.whole(), model.config, tokens, 1, length=_LENGTH).perplexity
      scores.append(score)
      self.assertLess(abs(score / _perplexity(path, tokens) - 1), 1e-5)
    self.assertGreater(abs(scores[1] / scores[0] - 1), 1e-3)


if __name__ == '__main__':
  absltest.main()
