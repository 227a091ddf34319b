"""One packed tree has one perplexity, whatever multiplies its codes: 1e-4 apart in float32, 1e-3 in bfloat16."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

import kernels
from jaxquant.evaluation import perplexity
from jaxquant.evaluation import precisions
from jaxquant.layers import device_kernels
from jaxquant.numerics import formats
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from tests import gpus
from tests import networks

_TOKENS = np.random.default_rng(7).integers(0, 32, 2048)
_LIMITS = {'float32': 1e-4, 'bfloat16': 1e-3}
_SITES = ('attention/input', 'attention/o/input', 'mlp/input', 'mlp/down/input')


def _float() -> dict:
  """A tree whose perplexity small errors change: its predictions are sharp."""
  params = networks.params('llama')
  return trees.put(params, 'head/kernel', 2 * params['head']['kernel'])


def _packed(activations: int) -> dict:
  """Weights of 4 bits for activations of so many, which have ranges of their own where they are quantized."""
  params = precisions.rewrite(_float(), precisions.Precision(4), learned=False)
  if activations < 16:
    for site in _SITES:
      quantizer = quantizers.DynamicQuantizer(formats.IntFormat(activations, symmetric=False))
      params = trees.put(params, f'layers/0/{site}', {'quantizer': quantizer})
  return params


def _perplexity(params, dtype, implementation) -> float:
  # By default a GPU multiplies float32 with the digits of bfloat16 and three more.
  with jax.default_matmul_precision('highest'):
    return perplexity.score(params, networks.config('llama', dtype), _TOKENS, len(_TOKENS), batch_size=64,
                            implementation=implementation).perplexity


class ImplementationsTest(parameterized.TestCase):

  def _agree(self, found, dtype):
    for name, value in found.items():
      self.assertLess(abs(value / found['simulated'] - 1), _LIMITS[dtype], f'{name}: {found}')

  @parameterized.product(activations=[16, 8, 4], dtype=list(_LIMITS))
  def test_on_every_device(self, activations, dtype):
    packed = _packed(activations)
    found = {name: _perplexity(packed, dtype, name) for name in kernels.IMPLEMENTATIONS}
    found['laid out'] = _perplexity(device_kernels.laid_out(packed), dtype, 'auto')
    self._agree(found, dtype)
    if activations == 16:  # what the rounding of weights costs would be seen
      self.assertGreater(abs(_perplexity(_float(), dtype, 'xla') / found['xla'] - 1), 3 * _LIMITS[dtype], found)

  @parameterized.product(activations=[16, 8, 4], dtype=list(_LIMITS))
  @gpus.needed
  def test_on_a_gpu(self, activations, dtype):
    packed = _packed(activations)
    found = {name: _perplexity(packed, dtype, name) for name in kernels.IMPLEMENTATIONS}
    # Plain activations of many tokens, or of float32, are none of the kernels'.
    name = 'mosaic_gpu' if activations < 16 else 'auto'
    found[name] = _perplexity(device_kernels.prepared(packed, name), dtype, name)
    self._agree(found, dtype)


if __name__ == '__main__':
  absltest.main()
