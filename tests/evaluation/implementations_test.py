"""One packed tree has one perplexity, whatever multiplies its codes: 1e-4 apart in float32, 1e-3 in bfloat16.

Its features fill tiles and quantizers of a GPU's kernels, and its windows are few tokens together, or many.
"""

import dataclasses
import functools
from typing import NamedTuple

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import kernels
from jaxquant.evaluation import perplexity
from jaxquant.layers import device_kernels
from jaxquant.layers import linear
from jaxquant.numerics import formats
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.training import checkpoints
from tests import gpus
from tests import networks

_LIMITS = {'float32': 1e-4, 'bfloat16': 1e-3}
_WINDOWS = {'few tokens': 4, 'many tokens': 64}  # of 16 tokens each, evaluated together
_TOKENS = np.random.default_rng(7).integers(0, 32, 4096)
_SITES = ('attention/input', 'attention/o/input', 'mlp/input', 'mlp/down/input')


class _Way(NamedTuple):
  """Weights of a format, in groups or not, and activations of so many bits, on ranges of their own or one."""

  weights: str
  activations: int
  group_size: int | None = None
  two_level: bool = False
  static: bool = False


_WAYS = {
    'W4A16': _Way('int4', 16), 'W4A16 g128': _Way('uint4', 16, 128), 'W8A8': _Way('int8', 8),
    'W4A8': _Way('uint4', 8), 'W4A8 g128': _Way('int4', 8, 128), 'W4A8 g32': _Way('uint4', 8, 32),
    'W4A8 two-level': _Way('int4', 8, 64, two_level=True), 'dINT4A8': _Way('dint4', 8), 'dINT3A8': _Way('dint3', 8),
    'W4A4': _Way('int4', 4), 'W4A4 static': _Way('int4', 4, static=True),
}


def _config(dtype='float32'):
  return dataclasses.replace(
      networks.config('llama', dtype), width=256, heads=2, kv_heads=1, head_dim=128, feed_forward=512)


@functools.cache
def _float() -> dict:
  """A tree whose perplexity small errors change: its predictions are sharp."""
  params = networks.noise(_config())
  return trees.put(params, 'head/kernel', 4 * params['head']['kernel'])


def _packed(way: _Way) -> dict:
  """The tree with weights of a way, and quantizers of activations that are not left at 16 bits."""
  params = _float()
  grid = quantizers.WeightQuantizer(formats.parse(way.weights), group_size=way.group_size, two_level=way.two_level)
  for path in trees.linears(params['layers']):
    path = f'layers/{path}/kernel'
    params = trees.put(params, path, grid.quantized(trees.get(params, path)))
  quantizer = quantizers.ClipQuantizer(jnp.float32(-4), jnp.float32(3.5), way.activations) if way.static else (
      quantizers.DynamicQuantizer(formats.IntFormat(min(way.activations, 8), symmetric=False)))
  for site in _SITES if way.activations < 16 else ():
    params = trees.put(params, f'layers/0/{site}', {'quantizer': quantizer})
  return params


def _perplexity(params, dtype, implementation, windows=64) -> float:
  # By default a GPU multiplies float32 with the digits of bfloat16 and three more.
  with jax.default_matmul_precision('highest'):
    return perplexity.score(params, _config(dtype), _TOKENS, len(_TOKENS), batch_size=windows,
                            implementation=implementation).perplexity


class PerplexityTest(parameterized.TestCase):

  def _agree(self, found, dtype):
    for name, value in found.items():
      self.assertLess(abs(value / found['simulated'] - 1), _LIMITS[dtype], f'{name}: {found}')

  @parameterized.product(name=['W4A16', 'W4A8 two-level', 'dINT4A8', 'W4A4 static'], dtype=list(_LIMITS))
  def test_on_every_device(self, name, dtype):
    packed = _packed(_WAYS[name])
    found = {implementation: _perplexity(packed, dtype, implementation) for implementation in kernels.IMPLEMENTATIONS}
    found['laid out'] = _perplexity(device_kernels.laid_out(packed), dtype, 'auto')
    self._agree(found, dtype)
    # What rounding costs would be seen.
    self.assertGreater(abs(_perplexity(_float(), dtype, 'xla') / found['xla'] - 1), 3 * _LIMITS[dtype], found)

  @parameterized.product(name=list(_WAYS), dtype=list(_LIMITS), windows=list(_WINDOWS))
  @gpus.needed
  def test_on_a_gpu(self, name, dtype, windows):
    way, count = _WAYS[name], _WINDOWS[windows]
    packed = _packed(way)
    found = {implementation: _perplexity(packed, dtype, implementation, count)
             for implementation in kernels.IMPLEMENTATIONS}
    # Plain activations of many tokens, or of float32, are none of the kernels'.
    plain = way.activations == 16 and (dtype == 'float32' or windows == 'many tokens')
    chosen = 'auto' if plain else 'mosaic_gpu'
    found[chosen] = _perplexity(device_kernels.prepared(packed, chosen), dtype, chosen, count)
    self._agree(found, dtype)


class CheckpointTest(parameterized.TestCase):
  """The integers that products of a saved tree add up: their results where scales are one, activations codes."""

  def _check(self, name, implementations, laid_out):
    way = _WAYS[name]
    directory = self.create_tempdir().full_path
    saved = checkpoints.Checkpoints(directory)
    saved.save(1, {'params': _packed(way)})
    saved.close()
    loaded = checkpoints.load_params(directory).state['params']
    least = -(2 ** (way.activations - 1))
    quantizer = quantizers.StepQuantizer(jnp.float32(1), way.activations)
    rng = np.random.default_rng(0)
    for path in trees.linears(loaded['layers']):
      kernel = trees.get(loaded['layers'], path)['kernel']
      ones = dataclasses.replace(kernel, scale=jnp.ones_like(kernel.scale))
      codes = rng.integers(least, -least, (2, 9, kernel.shape[0]))
      want = codes @ np.asarray(quantize.dequantize(ones), np.int64)
      self.assertLess(np.abs(want).max(), 2**24)
      layer = {'kernel': ones, 'input': {'quantizer': quantizer}}
      for implementation in implementations:
        tree = device_kernels.laid_out({'layer': layer})['layer'] if laid_out else layer
        got = jax.jit(functools.partial(linear.linear, implementation=implementation))(tree, jnp.asarray(codes, float))
        np.testing.assert_array_equal(got, want, f'{path}, {implementation}')

  @parameterized.product(name=['W8A8', 'W4A8', 'W4A8 g128', 'W4A4'], laid_out=[False, True])
  def test_on_every_device(self, name, laid_out):
    self._check(name, ['xla'] if laid_out else kernels.IMPLEMENTATIONS, laid_out)

  @parameterized.parameters('W8A8', 'W4A8', 'W4A8 g128', 'W4A4')
  @gpus.needed
  def test_on_a_gpu(self, name):
    self._check(name, ['xla', 'mosaic_gpu'], laid_out=True)


if __name__ == '__main__':
  absltest.main()
