"""What we export as GPTQ and AWQ, GPTQModel loads cleanly and evaluates as we do.

GPTQModel builds itself, and its kernels when it first loads, so that it is in no extra: where it is not installed, this
is skipped. `pip install --no-build-isolation gptqmodel optimum` installs it beside the extra [peers].
"""

import importlib.util
import pathlib
import unittest

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from jaxquant.calibration import driver
from jaxquant.interop import source
from jaxquant.interop import writing
from jaxquant.models import staging
from jaxquant.numerics import formats
from jaxquant.numerics import quantizers
from jaxquant.transforms import recipes
from tests import networks
from tests import peering

_MISSING = [name for name in ('gptqmodel', 'optimum') if importlib.util.find_spec(name) is None]


@unittest.skipIf(_MISSING, f'{", ".join(_MISSING)} not installed')
@peering.needed
class GPTQModelTest(parameterized.TestCase):

  # Scales of 16 bits, and sums in them, cost up to 1.6e-3. Without groups GPTQModel takes another kernel on a CPU,
  # TorchFusedLinear, which calculates in bfloat16: a single linear misses by 4e-3 (bfloat16 inputs and weights: 3e-3),
  # the logits by 1.3e-2, a fortieth of what rounding does to them. It takes zero points for those of symmetric codes,
  # whatever is stored, so that asymmetric ones without groups cannot be compared.
  @parameterized.parameters(
      ('gptq', 'int4', 32), ('gptq', 'uint4', 32), ('gptq_v2', 'int4', 32), ('gptq_v2', 'uint4', 32),
      ('gptq', 'int8', 32), ('gptq', 'int4', None, 2e-2), ('awq', 'uint4', 32), ('awq', 'int4', 32))
  def test_logits(self, kind, weights, group_size, tolerance=2e-3):
    opened = source.DirectorySource(peering.saved('wide llama'))
    recipe = recipes.Recipe(weight=quantizers.WeightQuantizer(formats.parse(weights), group_size=group_size),
                            activation=None)
    steps = recipe.steps(staging.model_sites(opened.config))
    params = driver.run(opened, staging.staged(opened.config), steps, []).params
    folder = writing.write(
        pathlib.Path(self.create_tempdir().full_path) / 'exported', params, opened.directory, kind)
    ids = peering.tokens()
    evaluate = networks.evaluator(opened.config, jit=networks.quick_jit)
    with jax.default_matmul_precision('highest'):
      want, exact = (np.asarray(evaluate(tree, ids)) for tree in (params, opened.whole()))
    got = peering.logits(folder, ids)
    self.assertLess(np.abs(got - want).max(), tolerance * np.abs(want).max())
    self.assertGreater(np.abs(exact - want).max(), 1.5 * tolerance * np.abs(want).max())


if __name__ == '__main__':
  absltest.main()
