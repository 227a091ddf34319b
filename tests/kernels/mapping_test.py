"""Products and quantizers under `vmap` and within `shard_map`: on every device, and in what is lowered for a GPU.

Run with an argument, this file is the program on eight devices that its test starts, and that is the file it writes.
"""

import functools
import pathlib
import pickle
import sys

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import kernels
from kernels.mosaic import activations
from kernels.mosaic import matmul
from kernels.mosaic import weight_only
from launch.benchmarks import kernel_cases
from tests import product_cases
from tests import source

_ROWS, _COLUMNS, _WHOLE = (jax.sharding.PartitionSpec(*axes) for axes in (('devices',), (None, 'devices'), ()))
_AUTO = (jax.sharding.AxisType.Auto,)
# What of a product with plain codes [inputs, outputs] is cut, and how: (operands, result).
_CUTS = {
    'tokens': (dict(x=_ROWS, x_codes=_ROWS, x_scale=_ROWS), _ROWS),
    'outputs': (dict(w_codes=_COLUMNS, w_scale=_COLUMNS), _COLUMNS),
    'inputs': (dict(x=_COLUMNS, x_codes=_COLUMNS, w_codes=_ROWS), _WHOLE),
}
# Weights that are laid out are [outputs, bytes of inputs].
_LAID_OUT = {'tokens': {}, 'outputs': dict(w_codes=_ROWS), 'inputs': dict(w_codes=_COLUMNS)}
# Products of every device, and what they multiply.
_CALLS = {
    **{name: (functools.partial(kernels.quantized_matmul, x_bits=4, w_bits=4, implementation=name),
              product_cases.problem(shape=(8, 64, 32))) for name in kernels.IMPLEMENTATIONS},
    'weights alone': (
        functools.partial(kernels.weight_only_matmul, w_bits=4, implementation='xla', out_dtype=jnp.float32),
        product_cases.weight_only_problem(8, 64, 32, 1, offset=False, bias=False)),
}
_QUANTIZE = functools.partial(kernels.quantize_activations, group_size=32, implementation='xla')


def _tokens() -> np.ndarray:
  """Activations [tokens, features]."""
  return np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)


def _cut(call, mesh, operands, cut, laid_out=False, **options):
  """The product of parts, of which those of inputs are added up."""
  given, result = _CUTS[cut]
  given = given | _LAID_OUT[cut] if laid_out else given

  def product(a):
    y = call(a)
    return jax.lax.psum(y, 'devices') if cut == 'inputs' else y

  specs = {name: given.get(name, _WHOLE) for name in operands}
  return jax.shard_map(product, mesh=mesh, in_specs=(specs,), out_specs=result, **options)


def _write(file: str) -> None:
  mesh = jax.make_mesh((8,), ('devices',), axis_types=_AUTO)
  made = {(name, cut): _cut(lambda a, call=call: call(**a), mesh, arguments, cut)(arguments)
          for name, (call, arguments) in _CALLS.items() for cut in _CUTS}
  made['quantizer', 'tokens'] = jax.shard_map(_QUANTIZE, mesh=mesh, in_specs=_ROWS, out_specs=_ROWS)(_tokens())
  pathlib.Path(file).write_bytes(pickle.dumps(jax.device_get(made)))


def _kernel_of_codes(a, behind=kernels.Behind()):
  return matmul.lowered(
      a, layout=kernels.Layout.INT4, x_bits=8, w_bits=4, out_dtype=jnp.float32, behind=behind)


def _kernel_of_weights(a, behind=kernels.Behind()):
  return weight_only.lowered(
      a, layout=kernels.Layout.INT4_WIDE, w_bits=4, out_dtype=jnp.float32, behind=behind)


def _kernel_of_activations(x):
  return activations.lowered(x, bits=8, symmetric=True, before=kernels.Before(), static=None, group_size=128,
                             packed=False)[0]


_GATED = kernels.Behind('silu', kernels.StaticRange(jnp.float32(20)))
# Products of a GPU, and 16 tokens by 512 x 512 weights in their layouts.
_KERNELS = {
    'codes': (_kernel_of_codes, kernel_cases.product(16, 512, 512, kernels.Layout.INT4)),
    'codes of a gate': (functools.partial(_kernel_of_codes, behind=_GATED),
                        kernel_cases.product(16, 512, 512, kernels.Layout.INT4)),
    'weights alone': (_kernel_of_weights, dict(
        x=jax.ShapeDtypeStruct((16, 512), jnp.bfloat16), w_codes=jax.ShapeDtypeStruct((512, 256), jnp.int8),
        w_scale=jax.ShapeDtypeStruct((1, 512), jnp.float32), w_offset=None, bias=None)),
}


def _lower(function, *operands) -> str:
  return jax.jit(function).trace(*operands).lower(lowering_platforms=('cuda',)).as_text()


class VmapTest(parameterized.TestCase):

  @parameterized.product(name=list(_KERNELS), shared=[True, False])
  def test_one_kernel_for_shared_weights_and_a_loop_for_others(self, name, shared):
    call, operands = _KERNELS[name]
    axes = {name: 0 if not shared or name[0] == 'x' else None for name in operands}
    stacked = {name: a if a is None or axes[name] is None else jax.ShapeDtypeStruct((3, *a.shape), a.dtype)
               for name, a in operands.items()}
    text = _lower(jax.vmap(call, in_axes=(axes,)), stacked)
    self.assertEqual(text.count('custom_call @mosaic_gpu'), 1)
    self.assertEqual('stablehlo.while' in text, not shared)

  @parameterized.product(groups=[1, 2], behind=[kernels.Behind(), _GATED])
  def test_more_tokens_together_than_the_kernel_of_weights_takes_are_a_product_of_xla(self, groups, behind):
    arguments = product_cases.weight_only_problem(192, 256, 128, groups, offset=True, bias=True)
    arguments['w_codes'] = kernels.prepack(jnp.asarray(arguments['w_codes']), kernels.Layout.INT4_WIDE)
    x = arguments.pop('x')
    call = jax.vmap(lambda x: _kernel_of_weights(arguments | {'x': x}, behind))
    self.assertIn('mosaic_gpu', _lower(call, x[:128].reshape(4, 32, 256)))
    self.assertNotIn('mosaic_gpu', _lower(call, x.reshape(6, 32, 256)))
    want = kernels.weight_only_matmul(
        x, **arguments, w_bits=4, layout=kernels.Layout.INT4_WIDE, out_dtype=jnp.float32, implementation='xla',
        behind=behind)
    got = jax.jit(call)(x.reshape(6, 32, 256))
    self.assertEqual(got.dtype, want.dtype)
    # A code on an edge may be its neighbor.
    np.testing.assert_allclose(
        got.reshape(want.shape), want, rtol=1e-5, atol=1e-4 if behind.static is None else 1)

  def test_tokens_of_a_map_are_quantized_by_one_kernel(self):
    text = _lower(jax.vmap(_kernel_of_activations), jax.ShapeDtypeStruct((3, 5, 256), jnp.bfloat16))
    self.assertEqual(text.count('custom_call @mosaic_gpu'), 1)
    self.assertNotIn('stablehlo.while', text)


class ShardMapTest(parameterized.TestCase):

  @parameterized.product(name=list(_KERNELS), cut=list(_CUTS), check_vma=[False, True])
  def test_each_device_runs_a_kernel(self, name, cut, check_vma):
    call, every = _KERNELS[name]
    operands = {name: a for name, a in every.items() if a is not None}
    mesh = jax.sharding.AbstractMesh((4,), ('devices',), axis_types=_AUTO)
    text = _lower(_cut(lambda a: call(dict.fromkeys(every) | a), mesh, operands, cut, laid_out=True,
                       check_vma=check_vma), operands)
    self.assertIn('mosaic_gpu', text)
    self.assertEqual('all_reduce' in text, cut == 'inputs')

  @parameterized.parameters(False, True)
  def test_each_device_quantizes_its_tokens(self, check_vma):
    mesh = jax.sharding.AbstractMesh((4,), ('devices',), axis_types=_AUTO)
    call = jax.shard_map(_kernel_of_activations, mesh=mesh, in_specs=_ROWS, out_specs=_ROWS, check_vma=check_vma)
    self.assertIn('mosaic_gpu', _lower(call, jax.ShapeDtypeStruct((16, 256), jnp.bfloat16)))

  def test_what_eight_devices_compute_is_the_whole(self):
    made = source.made_on_eight_devices(__file__)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-4)
    jax.tree.map(close, made.pop(('quantizer', 'tokens')), _QUANTIZE(_tokens()))
    self.assertLen(made, len(_CALLS) * len(_CUTS))
    for (name, cut), got in made.items():
      with self.subTest(name, cut=cut):
        call, arguments = _CALLS[name]
        close(got, call(**arguments))



if __name__ == '__main__':
  if len(sys.argv) == 2 and sys.argv[1].endswith('.pickle'):
    _write(sys.argv[1])
  else:
    absltest.main()
