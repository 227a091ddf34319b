"""Quantizers that are laid out for a GPU give the codes of the originals, and the sums that the products ask for."""

import dataclasses
import itertools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant.layers import device_kernels
from jaxquant.layers import device_quantizers
from jaxquant.layers import inputs
from jaxquant.layers import linear
from jaxquant.layers import norms
from jaxquant.layers import tap
from jaxquant.models import staging
from jaxquant.numerics import formats
from jaxquant.numerics import hadamard
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from kernels import dispatch
from kernels import gates
from kernels.mosaic import calls
from tests import gpus
from tests import networks

_linear = networks.exact_jit(linear.linear, static_argnames=('implementation',))
_prepare = jax.jit(inputs.prepare)


def _random(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _specification(name='uint8', **entries):
  return {**entries, 'quantizer': quantizers.DynamicQuantizer(formats.parse(name))}


class DeviceQuantizerTest(parameterized.TestCase):

  @parameterized.product(name=['int8', 'uint8', 'int4', 'uint4'], dtype=[jnp.float32, jnp.bfloat16],
                         entries=[(), ('scale',), ('shift', 'scale'), ('gather', 'shift'), ('scale', 'hadamard')])
  def test_codes_and_values_are_those_of_the_specification(self, name, dtype, entries):
    every = {'gather': jnp.arange(96)[::-1], 'shift': _random(96, seed=1), 'scale': jnp.exp(_random(96, seed=2)),
             'hadamard': hadamard.Hadamard(32)}
    specification = _specification(name, **{entry: every[entry] for entry in entries})
    converted = device_quantizers.converted(specification, [(96, 1)])
    self.assertIsInstance(converted['quantizer'], device_quantizers.DeviceQuantizer)
    self.assertEqual(set(converted), {'quantizer'} | ({'gather'} & set(entries)))
    x = _random(2, 5, 96).astype(dtype)
    got, want = _prepare(converted, x), _prepare(specification, x)
    for field in ('codes', 'scale', 'offset'):
      np.testing.assert_array_equal(getattr(got.codes, field), getattr(want.codes, field))
    np.testing.assert_array_equal(got.values, want.values)
    np.testing.assert_array_equal(got.codes.row_sums[..., 0], np.asarray(want.codes.codes, np.int64).sum(-1))

  @parameterized.product(kind=list(norms.NORMS), dtype=[jnp.float32, jnp.bfloat16],
                         entries=[(), ('shift', 'scale'), ('gather',)])
  def test_a_norm_in_front_may_be_left_to_it(self, kind, dtype, entries):
    every = {'gather': jnp.arange(96)[::-1], 'shift': _random(96, seed=1), 'scale': jnp.exp(_random(96, seed=2))}
    converted = device_quantizers.converted(
        _specification('uint8', **{entry: every[entry] for entry in entries}), [(96, 1)])
    self.assertEqual(inputs.takes_norms(converted), 'gather' not in entries)
    normed = norms.Normed(_random(2, 5, 96).astype(dtype), kind, 1e-5, 1 + _random(96, seed=3) / 4,
                          _random(96, seed=4) if kind == 'layer' else None)
    jit = networks.unoptimized_jit
    got = jit(lambda x: inputs.prepare(converted, normed._replace(x=x)))(normed.x)
    want = jit(inputs.prepare)(converted, jit(lambda x: normed._replace(x=x).compute())(normed.x))
    jax.tree.map(np.testing.assert_array_equal, got, want)

  @parameterized.parameters(jnp.float32, jnp.bfloat16)
  def test_a_sum_that_a_norm_is_of_may_be_left_to_it(self, dtype):
    converted = device_quantizers.converted(_specification('uint8'), [(96, 1)])
    x, y = (_random(2, 5, 96, seed=seed).astype(dtype) for seed in (1, 2))
    normed = norms.Normed(norms.Sum(x, y), 'rms', 1e-5, 1 + _random(96, seed=3) / 4)
    jit = networks.unoptimized_jit
    got, total = jit(lambda x, y: inputs.prepare_total(converted, normed._replace(x=norms.Sum(x, y))))(x, y)
    np.testing.assert_array_equal(total, x + y)
    want = jit(lambda x: inputs.prepare(converted, normed._replace(x=x)))(x + y)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    np.testing.assert_array_equal(normed.compute(), normed._replace(x=x + y).compute())

  @parameterized.parameters(((), True), (('gather',), False))
  def test_a_gate_in_front_may_be_left_to_it(self, entries, left):
    specification = _specification('int8', **dict.fromkeys(entries, jnp.arange(96)[::-1]))
    converted = device_quantizers.converted(specification, [(96, 1)])
    called = []

    def function(both):
      called.append(both)
      gate, up = gates.halves(both)
      return jax.nn.silu(gate) * up

    both = _random(2, 5, 192)
    got = inputs.prepare(converted, inputs.Pending(function, (both,), 'silu'))
    self.assertEqual(not called, left)
    want = inputs.prepare(specification, function(both))
    np.testing.assert_allclose(got.values, want.values, rtol=0, atol=1.01 * np.max(want.codes.scale))
    np.testing.assert_allclose(got.codes.scale, want.codes.scale, rtol=1e-6)

  @parameterized.parameters(('llama', True), ('opt', True), ('bert', False))
  def test_blocks_leave_norms_to_it_that_nothing_else_reads(self, style, left):
    params, config = networks.params(style), networks.config(style)
    for name in ('attention/input', 'mlp/input'):
      params = trees.put(params, f'layers/0/{name}', _specification('int8'))
    for path in trees.matching(r'layers/0/.*/(q|k|v|gate|up)', trees.linears(params)):
      params = trees.put(params, f'{path}/kernel', quantize.quantize(
          trees.get(params, path)['kernel'], formats.parse('int4')))
    laid_out, tokens = device_kernels.laid_out(params), networks.tokens(2)
    evaluate = lambda params, implementation: jax.jit(staging.make(config, implementation).apply)(
        {'params': params}, tokens)
    with mock.patch.object(norms.Normed, 'compute', autospec=True, side_effect=norms.Normed.compute) as computed:
      got = evaluate(laid_out, 'auto')
    # One norm stands behind the blocks, or before them, and two in them.
    self.assertEqual(computed.call_count == 1, left)
    np.testing.assert_allclose(got, evaluate(params, 'xla'), rtol=1e-5, atol=1e-6)

  @parameterized.product(
      activation=['silu', 'gelu_tanh'], rows=[2, 12], tapped=[False, True], static=[False, True])
  def test_gates_of_models_that_are_laid_out(self, activation, rows, tapped, static):
    config = dataclasses.replace(networks.config('llama'), feed_forward=128, activation=activation)
    params, taps = networks.noise(config), (tap.Tap('.*/gate_up/output', jnp.max),) if tapped else ()
    specification = {'quantizer': quantizers.ClipQuantizer(jnp.float32(-3), jnp.float32(4), 8)} if static else (
        _specification('int8'))
    for name in ('mlp/input', 'mlp/down/input'):
      params = trees.put(params, f'layers/0/{name}', specification)
    for path in trees.matching('layers/0/mlp/.*', trees.linears(params)):
      params = trees.put(params, f'{path}/kernel', quantize.quantize(
          trees.get(params, path)['kernel'], formats.parse('uint4')))
    laid_out, tokens = device_kernels.laid_out(params), networks.tokens(rows)
    self.assertTrue(laid_out['layers']['0']['mlp']['gate_up']['kernel'].paired)
    got, recorded = jax.jit(lambda params: staging.make(config, 'auto', taps).apply(
        {'params': params}, tokens, mutable=[tap.COLLECTION]))(laid_out)
    self.assertEqual(bool(recorded), tapped)
    want = jax.jit(staging.make(config, 'xla').apply)({'params': params}, tokens)
    # A code on an edge may be its neighbor.
    self.assertLess(np.std(got - want), 0.01 * np.std(want))

  @parameterized.parameters(
      ([(512, 1)], 512), ([(512, 4)], 128), ([(512, 2)], 128), ([(384, 2)], 64), ([(512, 4), (512, 8)], 64),
      ([(512, 16), (512, 1)], 32))
  def test_sums_are_over_parts_of_every_reader_s_groups(self, groups, run):
    self.assertEqual(device_quantizers.converted(_specification(), groups)['quantizer'].run, run)

  @parameterized.parameters(
      (_specification('full_int8'),), (_specification(clip=jnp.array([-1.0, 1.0])),),
      ({'quantizer': quantizers.DynamicQuantizer(formats.parse('int8'), group_size=32)},),
      ({'quantizer': quantizers.DynamicQuantizer(formats.parse('int8'), per_tensor=True)},),
      ({'quantizer': quantizers.StepQuantizer(jnp.float32(0.1), 8)},))
  def test_others_stay(self, specification):
    self.assertIs(device_quantizers.converted(specification, [(64, 1)]), specification)

  def test_without_a_kernel_that_is_laid_out_nothing_is_converted(self):
    specification = _specification()
    self.assertIs(device_quantizers.converted(specification, []), specification)
    layer = {'kernel': _random(64, 8), 'input': specification}
    self.assertIs(device_kernels.laid_out(layer)['input'], specification)

  @parameterized.product(group_size=[None, 32, 64], weight=['int4', 'uint4'])
  def test_a_layer_keeps_its_bits(self, group_size, weight):
    layer = {'kernel': quantize.quantize(_random(128, 24, seed=1), formats.parse(weight), group_size=group_size),
             'input': _specification(shift=_random(128, seed=2), scale=jnp.exp(_random(128, seed=3)))}
    converted = device_kernels.laid_out(layer)
    self.assertEqual(converted['input']['quantizer'].run, group_size or 128)
    x = _random(2, 3, 128)
    np.testing.assert_array_equal(
        _linear(converted, x, implementation='simulated'), _linear(layer, x, implementation='xla'))

  @parameterized.parameters(
      ('int8', 'uint4', 128), ('uint8', 'int4', None), ('int4', 'int4', 64), ('int8', 'int4', 128, True),
      ('uint4', 'int3', 64, True))
  def test_on_a_gpu_a_layer_is_two_kernels(self, activation, weight, group_size, two_level=False):
    converted = device_kernels.laid_out(_large(activation, weight, group_size, two_level))
    self.assertEqual(converted['kernel'].multiplier is not None, two_level)
    call = jax.jit(lambda params, x: linear.linear(params, x, implementation='auto'))
    with (mock.patch.object(calls, 'check_device'),
          mock.patch.object(dispatch, 'candidates', lambda: ('mosaic_gpu', 'xla'))):
      traced = call.trace(converted, jax.ShapeDtypeStruct((2, 8, 512), jnp.bfloat16))
      text = traced.lower(lowering_platforms=('cuda',)).as_text()
    # One quantizes, and once more for values that nobody reads, which XLA drops; one multiplies.
    self.assertBetween(text.count('stablehlo.custom_call @mosaic_gpu'), 2, 3)
    self.assertNotRegex(text, r'stablehlo.convert .*xi8>\) -> tensor<.*xi32>')


  def test_layers_that_are_alike_share_what_is_lowered_for_them(self):
    converted = device_kernels.laid_out(_large('int8', 'int4', None))
    count = lambda call, *xs: jax.jit(call).trace(converted, *xs).lower(
        lowering_platforms=('cuda',)).as_text().count('stablehlo.custom_call @mosaic_gpu')
    evaluate = lambda params, x: linear.linear(params, x, implementation='auto')
    x = jax.ShapeDtypeStruct((8, 512), jnp.bfloat16)
    with (mock.patch.object(calls, 'check_device'),
          mock.patch.object(dispatch, 'candidates', lambda: ('mosaic_gpu', 'xla'))):
      one = count(evaluate, x)
      self.assertEqual(count(lambda params, x, y: evaluate(params, x) + evaluate(params, y), x, x), one)
      wider = jax.ShapeDtypeStruct((16, 512), jnp.bfloat16)
      self.assertGreater(count(lambda params, x, y: (evaluate(params, x), evaluate(params, y)), x, wider), one)


@gpus.needed
class OnGpuTest(parameterized.TestCase):

  @parameterized.parameters(
      *itertools.product(['int8', 'uint8', 'int4'], ['int4', 'uint4'], [None, 64, 128], [False], [3, 300]),
      *itertools.product(['int8', 'uint8', 'int4'], ['int4'], [64, 128], [True], [3, 300]))
  def test_a_layer_computes_what_xla_does(self, activation, weight, group_size, two_level, tokens):
    layer, x = _large(activation, weight, group_size, two_level), _random(2, tokens, 512).astype(jnp.bfloat16)
    got = np.float64(_linear(device_kernels.laid_out(layer), x, implementation='auto'))
    want = np.float64(_linear(layer, x, implementation='xla'))
    # A code on an edge may be its neighbor, which is 16 times as far with 4 bits; one in a thousand is.
    self.assertLess(np.linalg.norm(got - want) / np.linalg.norm(want), 0.06 if activation == 'int4' else 0.01)


def _large(activation, weight, group_size, two_level=False):
  """A layer of 512 x 256 whose activation is shifted and scaled."""
  grid = quantizers.WeightQuantizer(formats.parse(weight), group_size=group_size, two_level=two_level)
  return {'kernel': grid.quantized(_random(512, 256, seed=1)),
          'input': _specification(activation, shift=_random(512, seed=2), scale=jnp.exp(_random(512, seed=3)))}


if __name__ == '__main__':
  absltest.main()
