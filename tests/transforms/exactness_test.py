"""Simulated and integer evaluation of whole quantized networks give the same bits."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from jaxquant.models import decoder
from jaxquant.numerics import formats
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from tests import networks

# For each layer: weights, their group size, and the quantizer of the inputs.
_LAYERS = (
    (None, None, None),
    ('int4', None, quantizers.ClipQuantizer(jnp.float32(-1.5), jnp.float32(2.5), 4)),
    ('int4', 8, quantizers.DynamicQuantizer(formats.parse('int4'))),
    ('uint8', 4, quantizers.DynamicQuantizer(formats.parse('uint8'), group_size=8)),
)
_HEAD = 'uint4', 8, quantizers.ClipQuantizer(jnp.float32(-3), jnp.float32(3), 8, align_zero=True)


def _mixed(style: str) -> dict:
  """A tree whose layers have the formats of `_LAYERS`, and whose head (or tied embedding) has those of `_HEAD`."""
  params = networks.params(style, len(_LAYERS))
  for site in decoder.model_sites(networks.config(style, layers=len(_LAYERS))):
    name, group_size, quantizer = _HEAD if site.name == 'head/input' else _LAYERS[int(site.name.split('/')[1])]
    if name is None:
      continue
    params = trees.put(params, f'{site.name}/quantizer', quantizer)
    for path in site.consumers:
      # A tied head contracts with the other axis of the embedding.
      axis = -1 if path == 'embedding' else -2
      kernel = quantize.quantize(
          trees.get(params, f'{path}/kernel'), formats.parse(name), axis=axis, group_size=group_size)
      params = trees.put(params, f'{path}/kernel', kernel)
  return params


class ExactnessTest(parameterized.TestCase):

  @parameterized.product(style=list(networks.STYLES), dtype=['float32', 'bfloat16'])
  def test_logits_of_mixed_formats_are_bit_identical(self, style, dtype):
    params, ids = _mixed(style), networks.tokens(5)
    config = networks.config(style, dtype, layers=len(_LAYERS))
    simulated, integer = (networks.evaluator(config, name)(params, ids) for name in ('simulated', 'xla'))
    self.assertEqual((simulated.dtype, simulated.shape), (config.compute_dtype, (*ids.shape, config.vocabulary)))
    np.testing.assert_array_equal(simulated, integer)
    # Against the float network: the quantizers are at work, and no more than that.
    exact = networks.evaluator(config)(networks.params(style, len(_LAYERS)), ids).astype(jnp.float32)
    error = jnp.mean((simulated.astype(jnp.float32) - exact) ** 2) / jnp.mean(exact**2)
    self.assertBetween(float(error), 1e-3, 0.5)


if __name__ == '__main__':
  absltest.main()
