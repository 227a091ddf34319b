"""Simulated and integer evaluation of whole quantized networks give the same bits."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant.models import staging
from jaxquant.numerics import formats
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from tests import networks

# Where a network starts in `_SITES`, so that their blocks of four sites have all of it, twice.
_FIRST = {'llama': 0, 'opt': 4, 'bert': 2}
# Format of weights, inputs that share a weight scale, quantizer of the inputs: in turn for the sites of a network.
_SITES = (
    ('int4', None, quantizers.ClipQuantizer(jnp.float32(-1.5), jnp.float32(2.5), 4)),
    ('uint8', 4, quantizers.DynamicQuantizer(formats.parse('uint8'), group_size=8)),
    ('dint4', 8, quantizers.DynamicQuantizer(formats.parse('uint8'))),
    None,
    ('int4', 8, quantizers.DynamicQuantizer(formats.parse('int4'))),
    ('dint8/4', None, quantizers.ClipQuantizer(jnp.float32(-2), jnp.float32(3), 8)),
)
_HEAD = 'uint4', 8, quantizers.ClipQuantizer(jnp.float32(-3), jnp.float32(3), 8, align_zero=True)


_quantize = jax.jit(quantize.quantize, static_argnames=('fmt', 'axis', 'group_size'))


@functools.cache
def _mixed(style: str) -> dict:
  """A tree with the formats of `_SITES`, again from the first after the last, and `_HEAD` for the last site."""
  params = networks.params(style)
  *sites, head = staging.model_sites(networks.config(style))
  settings = (*(*_SITES, *_SITES)[_FIRST[style] :][: len(sites)], _HEAD)
  for site, setting in zip((*sites, head), settings, strict=True):
    if setting is None:
      continue
    name, group_size, quantizer = setting
    params = trees.put(params, f'{site.name}/quantizer', quantizer)
    for path in site.consumers:
      # A tied head contracts with the other axis of the embedding.
      axis = -1 if path == 'embedding' else -2
      kernel = _quantize(
          trees.get(params, f'{path}/kernel'), formats.parse(name), axis=axis, group_size=group_size)
      params = trees.put(params, f'{path}/kernel', kernel)
  return params


class ExactnessTest(parameterized.TestCase):

  @parameterized.product(style=list(networks.STYLES), dtype=['float32', 'bfloat16'])
  def test_logits_of_mixed_formats_are_bit_identical(self, style, dtype):
    params, ids = _mixed(style), networks.tokens(5)
    config = networks.config(style, dtype)
    simulated, integer = (
        networks.evaluator(config, name, networks.exact_jit)(params, ids) for name in ('simulated', 'xla'))
    self.assertEqual((simulated.dtype, simulated.shape), (config.compute_dtype, (*ids.shape, config.vocabulary)))
    np.testing.assert_array_equal(simulated, integer)
    # Against the float network: the quantizers are at work, and no more than that.
    exact = networks.evaluator(networks.config(style), jit=networks.quick_jit)(networks.params(style), ids)
    error = jnp.mean((simulated.astype(jnp.float32) - exact) ** 2) / jnp.mean(exact**2)
    self.assertBetween(float(error), 1e-3, 0.5)


if __name__ == '__main__':
  absltest.main()
