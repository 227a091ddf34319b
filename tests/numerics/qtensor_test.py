"""QTensor: logical shape, storage, transposition, and arrays that live on several devices."""

import os
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant.numerics import formats
from jaxquant.numerics import quantize
from tests import source

# On eight devices: rows of the kernel by `a`, at boundaries of groups, and columns by `b`.
_SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxquant.numerics import formats, quantize

assert jax.device_count() == 8
mesh = jax.make_mesh((4, 2), ('a', 'b'), (AxisType.Auto, AxisType.Auto))
sharding = NamedSharding(mesh, PartitionSpec('a', 'b'))
x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 6)), jnp.float32)
for fmt in (formats.IntFormat(4), formats.IntFormat(3, symmetric=False)):
  here = quantize.quantize(x, fmt, group_size=8)
  there = jax.device_put(here, sharding)
  made = jax.jit(lambda x: quantize.quantize(x, fmt, group_size=8), out_shardings=sharding)(jax.device_put(x, sharding))
  for q in (there, made, jax.jit(lambda q: q)(there)):
    assert jax.tree.structure(q) == jax.tree.structure(here)
    assert all(a.sharding == sharding and len(a.addressable_shards) == 8 for a in jax.tree.leaves(q))
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(q), jax.tree.leaves(here)))
    np.testing.assert_array_equal(jax.jit(quantize.dequantize)(q), quantize.dequantize(here))
"""


_quantize = jax.jit(quantize.quantize, static_argnames=('fmt', 'axis', 'group_size'))
_dequantize = jax.jit(quantize.dequantize)


def _random(*shape):
  return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


class QTensorTest(parameterized.TestCase):

  @parameterized.product(axis=[-1, -2], name=['int2', 'uint4', 'int8'])
  def test_shape_and_groups_are_the_logical_ones(self, axis, name):
    q = _quantize(_random(3, 14, 21), formats.parse(name), axis=axis, group_size=7)
    self.assertEqual((q.shape, q.ndim), ((3, 14, 21), 3))
    self.assertEqual((q.groups, q.group_size), ({-1: 3, -2: 2}[axis], 7))
    self.assertEqual(q.unpacked().shape, q.shape)
    self.assertEqual(q.zero_point is None, name.startswith('int'))

  def test_bits_per_value_count_scales_and_zero_points(self):
    x = _random(128, 8)
    self.assertEqual(_quantize(x, formats.IntFormat(4), group_size=64).bits_per_value, 4 + 32 / 64)
    self.assertEqual(
        _quantize(x, formats.IntFormat(2, symmetric=False), group_size=32).bits_per_value, 2 + (32 + 8) / 32)

  @parameterized.product(axis=[-1, -2], name=['int8', 'uint3'])
  def test_transposed_is_the_transpose_without_new_rounding(self, axis, name):
    fmt = formats.parse(name)
    x = _random(10, 15)
    q = _quantize(x, fmt, axis=axis, group_size=5)
    turned = q.transposed()
    self.assertEqual((turned.shape, turned.axis), ((15, 10), -3 - axis))
    np.testing.assert_array_equal(_dequantize(turned), _dequantize(q).T)
    other = _quantize(x.T, fmt, axis=-3 - axis, group_size=5)
    jax.tree.map(np.testing.assert_array_equal, turned, other)
    jax.tree.map(np.testing.assert_array_equal, turned.transposed(), q)

  def test_sharded_over_eight_devices_it_has_the_same_bits(self):
    flags = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
    result = subprocess.run(
        [sys.executable, '-c', _SHARDED], cwd=source.ROOT, capture_output=True, text=True,
        env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags})
    self.assertEqual(result.returncode, 0, result.stderr)


if __name__ == '__main__':
  absltest.main()
