"""Laying out a tree for a GPU changes no integer of it, and what stays as it is, stays."""

import dataclasses
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import kernels
from jaxquant import errors
from jaxquant.layers import device_kernels
from jaxquant.layers import device_quantizers
from jaxquant.layers import inputs
from jaxquant.layers import linear
from jaxquant.numerics import formats
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from kernels.mosaic import calls
from tests import networks

_linear = networks.exact_jit(linear.linear, static_argnames=('implementation', 'transpose'))
_QUANTIZERS = {
    'clip': quantizers.ClipQuantizer(jnp.float32(-1.5), jnp.float32(2), 4),
    'per token': quantizers.DynamicQuantizer(formats.parse('uint8')),
    'per group': quantizers.DynamicQuantizer(formats.parse('int4'), group_size=32),
}


def _random(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _layer(name, group_size=None, quantizer=None, axis=-2):
  layer = {'kernel': quantize.quantize(_random(128, 24, seed=1), formats.parse(name), group_size=group_size, axis=axis),
           'bias': _random(24, seed=2)}
  return layer | ({'input': {'quantizer': _QUANTIZERS[quantizer]}} if quantizer else {})


def _two_level(name, quantizer=None, outputs=24, seed=1):
  """A layer like `_layer`, with groups of unequal size, one of them zeros."""
  values = _random(128, outputs, seed=seed) * jnp.repeat(jnp.float32([1, 0.3, 0, 2]), 32)[:, None]
  grid = quantizers.WeightQuantizer(formats.parse(name), group_size=32, two_level=True)
  return {**_layer(name, 32, quantizer), 'kernel': grid.quantized(values), 'bias': _random(outputs, seed=2)}


class DeviceKernelTest(parameterized.TestCase):

  @parameterized.product(
      name=['int4', 'uint3', 'uint8', 'offset_uint4', 'dint3', 'dint4', 'dint4/4', 'dint4/8', 'dint8'],
      group_size=[None, 32], quantizer=list(_QUANTIZERS))
  def test_products_of_codes_keep_their_bits(self, name, group_size, quantizer):
    layer, x = _layer(name, group_size, quantizer), _random(2, 3, 128)
    converted = device_kernels.laid_out(layer)
    self.assertEqual(isinstance(converted['kernel'], device_kernels.DeviceKernel), name != 'dint8')
    want = _linear(layer, x, implementation='xla')
    # The offset of a static range is added to the bias first.
    tolerance = 2e-6 * np.abs(want).max() if quantizer == 'clip' else 0
    for implementation in ('simulated', 'auto'):
      got = _linear(converted, x, implementation=implementation)
      np.testing.assert_allclose(got, want, rtol=0, atol=tolerance)

  @parameterized.parameters(
      ('clip', True), ('pact', True), ('step', False), ('per token', False), ('per channel', None))
  def test_the_offset_of_a_static_range_goes_into_the_bias(self, name, folded):
    others = {'pact': quantizers.PactQuantizer(jnp.float32(2), 4),
              'step': quantizers.StepQuantizer(jnp.float32(0.1), 4),
              'per channel': quantizers.ClipQuantizer(-jnp.ones(128), jnp.ones(128), 4)}
    quantizer = (_QUANTIZERS | others)[name]
    layer = _layer('int4', 32, 'clip') | {'input': {'quantizer': quantizer}}
    converted = device_kernels.laid_out(layer)
    of_device = isinstance(converted['input']['quantizer'], device_quantizers.DeviceQuantizer)
    self.assertEqual(of_device, folded is not None)
    # Without offsets to come, nobody needs the sums of columns.
    self.assertEqual(converted['kernel'].column_sums is None, folded is not None and name != 'per token')
    if not folded:
      self.assertIs(converted['bias'], layer['bias'])
      return
    x = _random(3, 128)
    codes, got = quantizer.codes(x), inputs.prepare(converted['input'], x)
    self.assertIsNone(got.codes.offset)
    np.testing.assert_array_equal(got.codes.codes, codes.codes)
    constant = codes.offset * quantize.dequantize(layer['kernel']).sum(0)
    np.testing.assert_allclose(converted['bias'], layer['bias'] + constant, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got.values @ converted['kernel'].dense() + converted['bias'],
                               quantizer(x) @ converted['kernel'].dense() + layer['bias'], rtol=1e-4, atol=1e-4)

  def test_an_offset_stays_where_one_of_its_readers_is_not_laid_out(self):
    kernel = {'kernel': quantize.quantize(_random(128, 128), formats.parse('int4'))}
    site = {'input': {'quantizer': _QUANTIZERS['clip']}}
    for last, folded in ((kernel, True), ({'kernel': _random(128, 128)}, False)):
      got = device_kernels.laid_out({'gate': kernel, 'up': last} | site)
      self.assertEqual(isinstance(got['input']['quantizer'], device_quantizers.DeviceQuantizer), folded)
      self.assertEqual('bias' in got.get('gate_up', got.get('gate')), folded)

  @parameterized.product(
      name=['int4', 'full_int4', 'int3'], quantizer=list(_QUANTIZERS), implementation=['simulated', 'auto'])
  def test_two_level_scales_become_integers_of_groups_and_one_scale(self, name, quantizer, implementation):
    layer, x = _two_level(name, quantizer), _random(2, 3, 128)
    converted = device_kernels.laid_out(layer)
    kernel = converted['kernel']
    self.assertEqual((kernel.layout, kernel.scale.shape, kernel.multiplier.shape, kernel.multiplier.dtype),
                     (kernels.Layout.INT4, (1, 24), (4, 24), jnp.int32))
    self.assertEqual(kernel.multiplier.max(), 15)
    want = _linear(layer, x, implementation='xla')
    np.testing.assert_allclose(
        _linear(converted, x, implementation=implementation), want, rtol=0, atol=2e-6 * np.abs(want).max())
    dense = quantize.dequantize(layer['kernel'])
    np.testing.assert_allclose(kernel.dense(), dense, rtol=1e-6)
    if quantizer != 'clip':  # whose offset is in the bias
      np.testing.assert_allclose(kernel.column_sums, jnp.sum(dense, axis=0), rtol=1e-4, atol=1e-5)

  def test_two_level_scales_stay_scales_where_products_do_not_take_integers(self):
    self.assertIsNone(device_kernels.laid_out(_two_level('int4'))['kernel'].multiplier)
    self.assertIsNone(device_kernels.laid_out(_layer('int4', 32, 'clip'))['kernel'].multiplier)
    self.assertIsNone(device_kernels.laid_out(_layer('int4', None, 'clip'))['kernel'].multiplier)
    # Their sum over so many inputs might exceed int32.
    grid = quantizers.WeightQuantizer(formats.parse('int4'), group_size=64, two_level=True)
    for size, expected in ((2**17 - 64, True), (2**17, False)):
      long = grid.quantized(jnp.linspace(-1, 1, size)[:, None])
      kernel = device_kernels.laid_out({'kernel': long, 'input': {'quantizer': _QUANTIZERS['clip']}})['kernel']
      self.assertEqual((kernel.multiplier is not None, len(kernel.scale)), (expected, 1 if expected else size // 64))

  @parameterized.product(name=['int4', 'uint4', 'uint2'], group_size=[None, 32], dtype=['float32', 'bfloat16'])
  def test_products_without_codes(self, name, group_size, dtype):
    layer, x = _layer(name, group_size), _random(2, 3, 128).astype(dtype)
    converted = device_kernels.laid_out(layer)
    self.assertEqual(converted['kernel'].layout, kernels.Layout.INT4_WIDE)
    tolerance = {'rtol': 1e-5, 'atol': 1e-4} if dtype == 'float32' else {'rtol': 0.02, 'atol': 0.1}
    got, want = _linear(converted, x), _linear(layer, x)
    self.assertEqual(got.dtype, want.dtype)
    np.testing.assert_allclose(np.float32(got), np.float32(want), **tolerance)

  @parameterized.parameters(
      ('dint3', True), ('dint3/8', True), ('dint4', True), ('dint4/4', True), ('dint4/8', False))
  def test_codes_of_dint_stay_packed_where_seven_bits_hold_their_integers(self, name, packed):
    kernel = device_kernels.laid_out(_layer(name, 32, 'per token'))['kernel']
    self.assertEqual(kernel.layout, kernels.Layout.DINT4 if packed else kernels.Layout.ROWS)
    self.assertEqual(kernel.codes.shape, (128, 64 if packed else 128))
    self.assertEqual(kernel.zero_point is None, not packed)

  def test_refuses_zero_points_that_are_no_codes(self):
    layer = _layer('dint4', None, 'clip')
    kernel = layer['kernel']
    layer['kernel'] = dataclasses.replace(kernel, zero_point=kernel.zero_point.at[0, 3].set(14))
    with self.assertRaisesRegex(errors.UserError, 'up/down: zero points of dint4 go up to 13, and one is 14'):
      device_kernels.laid_out({'up': {'down': layer}})

  @parameterized.parameters('int4', 'uint4', 'dint3', 'dint4', 'dint4/4', 'dint4/8')
  def test_dense_values_are_those_of_the_tensor(self, name):
    layer = _layer(name, 32, 'clip')
    np.testing.assert_allclose(
        device_kernels.laid_out(layer)['kernel'].dense(), quantize.dequantize(layer['kernel']), rtol=1e-5, atol=1e-6)

  @parameterized.parameters('clip', None)
  def test_products_of_dequantized_values_do_without_a_layout(self, quantizer):
    layer, x = _layer('int4', 32, quantizer), jax.random.normal(jax.random.key(1), (3, 128))
    want, got = (linear.linear(each, x, implementation=linear.DEQUANTIZED) for each in (
        layer, device_kernels.laid_out(layer)))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)

  def test_what_has_no_layout_stays(self):
    trees_to_keep = (
        {'embedding': _layer('int4')}, _layer('int8'), _layer('dint8', None, 'clip'), _layer('int4', axis=-1),
        {'kernel': _random(3, 4)})
    for tree in trees_to_keep:
      kept = device_kernels.laid_out(tree)
      jax.tree.map(np.testing.assert_array_equal, kept, tree)
      self.assertEqual(jax.tree.structure(kept), jax.tree.structure(tree))

  @parameterized.parameters(
      ('clip', 'groups of 120 do not divide 128 features'),
      (None, 'an activation of 128 features meets a kernel of 120 inputs'))
  def test_a_kernel_laid_out_meets_as_many_features_as_it_has_inputs(self, quantizer, message):
    # Both are padded to 128, so that the shapes of what is multiplied would fit.
    layer = {**_layer('int4', None, quantizer), 'kernel': quantize.quantize(_random(120, 24), formats.parse('int4'))}
    with self.assertRaisesRegex(ValueError, message):
      linear.linear(device_kernels.laid_out(layer), _random(3, 128))

  def test_a_kernel_laid_out_is_not_read_transposed(self):
    with self.assertRaisesRegex(ValueError, 'cannot be read transposed'):
      linear.linear(device_kernels.laid_out(_layer('int4')), _random(3, 24), transpose=True)


class RoutingTest(parameterized.TestCase):

  @parameterized.parameters(
      ('auto', '9.0', True), ('mosaic_gpu', '9.0', True), ('xla', '9.0', False), ('simulated', '9.0', False),
      ('auto', '8.9', False), ('auto', '8.0', False))
  def test_only_what_runs_the_kernels_reads_their_layouts(self, implementation, capability, expected):
    device = mock.Mock(platform='gpu', compute_capability=capability, device_kind='NVIDIA')
    with (mock.patch.object(jax, 'local_devices', lambda: [device]),
          mock.patch.object(device_kernels, 'laid_out', lambda params: 'laid out')):
      tree = {}
      self.assertIs(device_kernels.prepared(tree, implementation) == 'laid out', expected)

  @parameterized.parameters(
      (None, jnp.bfloat16, 129, 'at most 128 tokens, not 129'), (None, jnp.float32, 3, 'takes bfloat16 .*not float32'),
      ('per group', jnp.bfloat16, 3, 'one scale a token, not 4 groups'))
  def test_a_product_that_is_asked_for_in_vain_is_a_mistake_of_the_user(self, quantizer, dtype, tokens, message):
    layer = _layer('int4', None, quantizer)
    for params in (layer, device_kernels.laid_out(layer))[quantizer is None :]:
      with (mock.patch.object(calls, 'check_device'),
            self.assertRaisesRegex(errors.UserError, f'mosaic_gpu does not multiply this: .*{message}.*; auto takes')):
        linear.linear(params, jnp.ones((tokens, 128), dtype), implementation='mosaic_gpu')


class JoinedTest(parameterized.TestCase):

  @parameterized.product(name=['int4', 'uint4', 'int8'], group_size=[None, 32], bias=[False, True])
  def test_linears_of_one_activation_become_one(self, name, group_size, bias):
    layer = lambda seed, outputs: {
        'kernel': quantize.quantize(_random(64, outputs, seed=seed), formats.parse(name), group_size=group_size),
        **({'bias': _random(outputs, seed=seed)} if bias else {})}
    site = {'quantizer': _QUANTIZERS['per token']}
    tree = {'attention': {'q': layer(1, 256), 'k': layer(2, 128), 'v': layer(3, 128), 'o': layer(4, 128),
                          'input': site, 'q_norm': {'scale': jnp.ones(3)}}}
    got = device_kernels.laid_out(tree)['attention']
    self.assertEqual(set(got), {'qkv', 'input', 'q_norm', 'o'})
    self.assertEqual(got['qkv']['kernel'].shape, (64, 512))
    x = inputs.prepare(site, _random(3, 64))
    want = [_linear(tree['attention'][part], x, implementation='xla') for part in 'qkv']
    np.testing.assert_array_equal(_linear(got['qkv'], x, implementation='auto'), jnp.concatenate(want, axis=-1))
    dense = [linear.dense_kernel(tree['attention'][part]) for part in 'qkv']
    np.testing.assert_allclose(got['qkv']['kernel'].dense(), jnp.concatenate(dense, axis=1), rtol=1e-5, atol=1e-6)
    sums = jnp.sum(jnp.concatenate(dense, axis=1), axis=0)
    np.testing.assert_allclose(got['qkv']['kernel'].column_sums, sums, rtol=1e-4, atol=1e-4)

  @parameterized.product(
      name=['int4', 'uint4', 'dint4', 'int8'], quantizer=[None, *_QUANTIZERS], bias=[False, True],
      implementation=['simulated', 'xla', 'auto', linear.DEQUANTIZED])
  def test_a_gate_and_what_it_multiplies_are_in_order_for_others(self, name, quantizer, bias, implementation):
    parts = [{'kernel': quantize.quantize(_random(64, 128, seed=seed), formats.parse(name)),
              **({'bias': _random(128, seed=seed)} if bias else {})} for seed in range(2)]
    site = {'input': {'quantizer': _QUANTIZERS[quantizer]}} if quantizer else {}
    got = device_kernels.laid_out(dict(zip(('gate', 'up'), parts)) | site)
    x = _random(3, 64)
    prepare = lambda tree: inputs.prepare(tree.get('input'), x)
    values = lambda part: linear.linear(part, prepare(site), implementation='xla')
    want = jnp.concatenate([values(part) for part in parts], axis=-1)
    if 'gate_up' not in got:  # there are layouts for 4 bits beside plain activations
      self.assertIn((name, quantizer), [('dint4', None), ('int8', None)])
      return
    self.assertTrue(got['gate_up']['kernel'].paired)
    found = linear.linear(got['gate_up'], prepare(got), implementation=implementation)
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-5 * np.abs(want).max())

  def test_two_level_scales_of_one_activation_become_one(self):
    site = {'quantizer': _QUANTIZERS['per token']}
    layers = [_two_level('int4', outputs=128 * seed, seed=seed) for seed in (2, 1, 3)]
    got = device_kernels.laid_out({'attention': dict(zip('qkv', layers)) | {'input': site}})['attention']
    self.assertEqual(set(got), {'qkv', 'input'})
    self.assertEqual((got['qkv']['kernel'].scale.shape, got['qkv']['kernel'].multiplier.shape), ((1, 768), (4, 768)))
    self.assertEqual(got['input']['quantizer'].run, 128)  # offsets of the activation are all that meets sums
    x = inputs.prepare(site, _random(3, 128))
    want = jnp.concatenate([_linear(layer, x, implementation='xla') for layer in layers], axis=-1)
    np.testing.assert_allclose(
        _linear(got['qkv'], x, implementation='auto'), want, rtol=0, atol=2e-6 * np.abs(want).max())
    plain = quantize.quantize(_random(128, 128), formats.parse('int4'), group_size=32)
    mixed = dict(zip('qkv', [*layers[:2], {'kernel': plain, 'bias': jnp.zeros(128)}])) | {'input': site}
    self.assertEqual(set(device_kernels.laid_out({'attention': mixed})['attention']), {'q', 'k', 'v', 'input'})

  def test_what_is_not_alike_stays_apart(self):
    kernel = lambda name, outputs=128: {'kernel': quantize.quantize(_random(64, outputs), formats.parse(name))}
    site = {'input': {'quantizer': _QUANTIZERS['per token']}}
    for other in (kernel('int8'), kernel('uint4'), kernel('int4', 96), kernel('int4') | {'bias': jnp.zeros(128)},
                  kernel('int4') | {'input': {'scale': jnp.ones(64)}}, {'kernel': _random(64, 128)},
                  kernel('int4', 256)):
      got = device_kernels.laid_out({'gate': kernel('int4'), 'up': other} | site)
      self.assertEqual(set(got), {'gate', 'up', 'input'})


class ModelTest(parameterized.TestCase):

  @parameterized.parameters(('llama', True, True), ('llama', False, True), ('opt', False, False), ('opt', True, True))
  def test_models_evaluate_alike(self, style, site, quantized):
    model = networks.config(style)
    params = networks.params(style)
    for path in trees.linears(params):
      if trees.is_table(path):
        continue
      kernel = quantize.quantize(trees.get(params, path)['kernel'], formats.parse('uint4'))
      params = trees.put(params, f'{path}/kernel', kernel)
      if quantized:
        # At the site that linears share, or at each of them.
        above = site and path.rpartition('/')[2] in ('q', 'k', 'v', 'gate', 'up')
        place = path.rpartition('/')[0] if above else path
        params = trees.put(params, f'{place}/input', {'quantizer': _QUANTIZERS['per token']})
    shared = [path for path in trees.inputs(params) if path.endswith(('attention/input', 'mlp/input'))]
    self.assertLen(shared, 2 * (site and quantized))
    converted = device_kernels.laid_out(params)
    layouts = {leaf.layout for leaf in jax.tree.leaves(
        converted, is_leaf=lambda leaf: isinstance(leaf, device_kernels.DeviceKernel))
               if isinstance(leaf, device_kernels.DeviceKernel)}
    self.assertEqual(layouts, {kernels.Layout.INT4 if quantized else kernels.Layout.INT4_WIDE})
    ids = networks.tokens(2)
    want = networks.evaluator(model, 'xla')(params, ids)
    got = networks.evaluator(model, 'auto')(converted, ids)
    # The same integers; what surrounds them is another program, in which XLA may contract other products and sums.
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 if quantized else 1e-4)

  @parameterized.parameters(('int4', kernels.Layout.INT4), ('dint4', kernels.Layout.DINT4))
  def test_linears_that_read_no_shared_site_are_not_quantized_by_it(self, name, layout):
    params = networks.params('llama')
    for path in trees.linears(params):
      if path.rpartition('/')[2] not in trees.TABLES:
        kernel = quantize.quantize(trees.get(params, path)['kernel'], formats.parse(name))
        params = trees.put(params, f'{path}/kernel', kernel)
    for site in ('layers/0/attention/input', 'layers/0/mlp/input'):
      params = trees.put(params, site, {'quantizer': _QUANTIZERS['per token']})
    converted = device_kernels.laid_out(params)
    layer = trees.get(converted, 'layers/0')
    found = {part: getattr(layer[module][part]['kernel'], 'layout', None)
             for module, parts in (('attention', 'qkvo'), ('mlp', ('gate', 'up', 'down'))) for part in parts}
    # Integers of dint4 have more than the 4 bits of a layout for plain activations, which therefore keep their tensors.
    plain = kernels.Layout.INT4_WIDE if name == 'int4' else None
    self.assertEqual(found, dict.fromkeys(['q', 'k', 'v', 'gate', 'up'], layout) | dict.fromkeys(['o', 'down'], plain))
    ids = networks.tokens(2)
    got = networks.evaluator(networks.config('llama'), 'auto')(converted, ids)
    want = networks.evaluator(networks.config('llama'), 'xla')(params, ids)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


if __name__ == '__main__':
  absltest.main()
