"""Every kernel and configuration lowers for CUDA on any machine: types, layouts and shared memory fit."""

import dataclasses
import functools
import importlib
import itertools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp

import kernels
from kernels import dispatch
from kernels import rule
from kernels import tuning
from kernels.mosaic import calls
from kernels.mosaic import configs
from kernels.mosaic import matmul
from kernels.mosaic import weight_only
from launch.benchmarks import kernel_cases
from tests import lowering

_FEW_AND_MANY = (7, 333)  # tokens of the kernels for decoding and for prefill
_arguments, _lower = kernel_cases.product, lowering.product


class LoweringTest(parameterized.TestCase):

  @parameterized.named_parameters((case.name, case) for case in kernel_cases.every())
  def test_cases_that_are_compiled(self, case):
    text = jax.jit(case.call).trace(case.operands).lower(lowering_platforms=('cuda',)).as_text()
    self.assertEqual(text.count('custom_call @mosaic_gpu'), 1)

  # The dtype is that of the last step, which is the same whatever terms were added up.
  @parameterized.parameters(
      *itertools.product(_FEW_AND_MANY, [None, 'scalar', 'token'], [False, True], [jnp.bfloat16]),
      *itertools.product(_FEW_AND_MANY, ['token'], [True], [jnp.float32, jnp.float16]))
  def test_terms(self, tokens, x_offset, w_offset, dtype):
    arguments = _arguments(tokens, 200, 328, kernels.Layout.INT4, x_offset=x_offset, w_offset=w_offset, bias=True)
    self.assertIn('mosaic_gpu', _lower(arguments, out_dtype=dtype))

  @parameterized.parameters(
      configs.Prefill(cluster=2), configs.Prefill(128, 128, stages=5, cluster=2, panel=1),
      configs.Prefill(64, 128, 128, 4, warpgroups=3), configs.Prefill(64, 64, 256, 3), configs.Decode(8, 256, 6, 2, 4),
      configs.Decode(64, 128, 4, 2, 2), configs.Decode(16, 256, 2, 4, 8), configs.Decode(8, 256, 4, 4),
      configs.Decode(64, 128, 2, 1, shared=True), configs.Decode(8, 256, 4, 2, fold=2, shared=True),
      configs.Decode(16, 128, 2, 1, fold=2), configs.Decode(16, 256, 2, 2, shared=True, copying=False),
      configs.Decode(8, 256, 2, 2, shared=True, tile_n=128), configs.Decode(24, 256, 2, 2, fold=2, shared=True),
      configs.Decode(48, 128, 2, 2), configs.Decode(48, 128, 2, 2, 2, shared=True, copying=False),
      configs.Decode(64, 128, 2, 1, 8), configs.Prefill(64, 48, 256, 3))
  def test_configurations_that_a_sweep_tries(self, config):
    tokens, outputs = config.tile_m * 2, 1536
    with tuning.forced(lambda _: config):
      self.assertIn('mosaic_gpu', _lower(_arguments(tokens, outputs, 1024, kernels.Layout.INT4)))

  def test_a_cluster_leaves_room_for_what_waits_for_its_sums(self):
    layout = kernels.Layout.ROWS
    arguments = _arguments(64, 5120, 13_824, layout, groups=108, w_offset=True, bias=True)
    self.assertIn('mosaic_gpu', _lower(arguments, layout=layout))

  def test_plain_activations_with_a_result_of_32_bits(self):
    case = next(case for case in kernel_cases.every() if case.name.startswith('W4A16'))
    call = functools.partial(weight_only.lowered, layout=kernels.Layout.INT4_WIDE, w_bits=4, out_dtype=jnp.float32)
    self.assertIn('mosaic_gpu', jax.jit(call).trace(case.operands).lower(lowering_platforms=('cuda',)).as_text())

  @parameterized.product(tokens=[1, 64, 8192], w_offset=[False, True])
  def test_groups_as_8_bit_floating_point(self, tokens, w_offset):
    arguments = _arguments(tokens, 4096, 4096, kernels.Layout.INT4, groups=32, w_offset=w_offset)
    with tuning.forced(lambda problem: dataclasses.replace(rule.configuration(problem), float8=True)):
      self.assertIn('mosaic_gpu', _lower(arguments, x_bits=4))

  @parameterized.product(
      group=[32, 64, 96, 192, 256], tokens=[8, 100], layout=[kernels.Layout.INT4, kernels.Layout.ROWS])
  def test_groups_by_size(self, group, tokens, layout):
    arguments = _arguments(tokens, 256, 768, layout, groups=768 // group, w_offset=True)
    if group % 64 and layout is kernels.Layout.ROWS:
      with self.assertRaisesRegex(NotImplementedError, f'groups of {group} inputs of weights of 4 bits only'):
        _lower(arguments, layout=layout)
    else:
      self.assertIn('mosaic_gpu', _lower(arguments, layout=layout))

  @parameterized.product(
      group=[None, 32, 64, 96, 128], options=[(8, 1 / 2, None), (8, 1 / 4, 'token'), (300, 1 / 4, 'token')])
  def test_groups_of_dint_codes(self, group, options):
    tokens, special, x_offset = options
    groups = 768 // group if group else 1
    arguments = _arguments(tokens, 384, 768, kernels.Layout.DINT4, groups=groups, x_offset=x_offset, bias=True)
    if group is None:
      arguments['column_sums'] = None
    self.assertIn('mosaic_gpu', _lower(arguments, layout=kernels.Layout.DINT4, w_bits=7, w_special=special, x_bits=4))

  @parameterized.product(
      group=[None, 32, 64, 96, 192, 256],
      options=[(8, kernels.Layout.CODES, None), (300, kernels.Layout.INT4, 'token')])
  def test_groups_of_two_level_weights(self, group, options):
    tokens, layout, x_offset = options
    multipliers = 768 // group if group else 1
    arguments = _arguments(tokens, 384, 768, layout, multipliers=multipliers, x_offset=x_offset, bias=True)
    arguments['column_sums'] = None
    self.assertIn('mosaic_gpu', _lower(arguments, layout=layout, w_bits=8, out_dtype=jnp.float32))

  @parameterized.parameters(
      configs.Prefill(64, 256, 256, 2), configs.Prefill(64, 128, 256, 3), configs.Prefill(128, 128, 128, 4, cluster=2),
      configs.Decode(8, 256, 4, 4, 4), configs.Decode(64, 128, 2, 2))
  def test_configurations_of_two_level_weights(self, config):
    with tuning.forced(lambda _: config):
      arguments = _arguments(2 * config.tile_m, 1024, 1024, kernels.Layout.INT4, multipliers=16)
      self.assertIn('mosaic_gpu', _lower(arguments, w_bits=8))

  @parameterized.product(
      weights=[(kernels.Layout.INT4, {}), (kernels.Layout.INT4, {'two_level': True}), (kernels.Layout.DINT4, {})],
      group=[64, 128], offsets=[False, True])
  def test_groups_in_runs_of_inputs(self, weights, group, offsets):
    (layout, options), groups = weights, 1024 // group
    if 'two_level' in options:
      arguments = _arguments(20, 256, 1024, layout, multipliers=groups, x_offset='token' if offsets else None)
    else:
      arguments = _arguments(20, 256, 1024, layout, groups=groups,
                             w_offset=offsets and layout is not kernels.Layout.DINT4)
    for tile_k in (group, 2 * group):
      config = configs.Decode(16, tile_k, 2, 2, fold=2)
      with tuning.forced(lambda _, config=config: config):
        text = _lower(arguments, layout=layout, w_bits=8 if 'two_level' in options else kernel_cases.BITS[layout])
        self.assertIn('mosaic_gpu', text)

  @parameterized.parameters(7, 333)
  def test_two_level_weights_are_tuned_as_with_one_scale_an_output(self, tokens):
    asked = []

    def choose(problem):
      asked.append(problem)
      return rule.configuration(problem)

    with tuning.forced(choose):
      _lower(_arguments(tokens, 512, 4096, kernels.Layout.INT4, multipliers=32), x_bits=4, w_bits=8)
      _lower(_arguments(tokens, 512, 4096, kernels.Layout.INT4), x_bits=8)
    two_level, plain = asked
    self.assertEqual(two_level, plain._replace(group=128, two_level=True))
    one = lambda config: dataclasses.replace(config, stages=1)
    self.assertEqual(one(rule.configuration(two_level)), one(rule.configuration(plain)))

  @parameterized.parameters((1, 1, True), (4, 4, True), (2, 4, True), (2, 8, True), (2, 2, False))
  def test_sums_at_hand_are_not_taken_again(self, groups, runs, enough):
    arguments = _arguments(16, 256, 512, kernels.Layout.INT4, groups=groups, w_offset=True)
    summed = r'stablehlo.convert .*xi8>\) -> tensor<.*xi32>'
    self.assertRegex(_lower(arguments), summed)
    arguments['row_sums'] = jax.ShapeDtypeStruct((16, runs), jnp.int32)
    # Sums of longer parts than the kernel scales at a time are of no use to it.
    (self.assertNotRegex if enough else self.assertRegex)(_lower(arguments), summed)

  def test_plain_codes_are_laid_out_on_the_way(self):
    self.assertIn('mosaic_gpu', _lower(_arguments(16, 256, 256, kernels.Layout.CODES), layout=kernels.Layout.CODES))

  @parameterized.parameters('bfloat16', 'float32')
  def test_a_dtype_may_be_a_name(self, dtype):
    call = lambda x, w: kernels.quantized_matmul(
        x, w, jnp.ones((16, 1)), jnp.ones((1, 256)), w_bits=4, implementation='mosaic_gpu', out_dtype=dtype)
    with mock.patch.object(calls, 'check_device'):
      traced = jax.jit(call).trace(*(jax.ShapeDtypeStruct((size, 256), jnp.int8) for size in (16, 256)))
    self.assertIn('mosaic_gpu', traced.lower(lowering_platforms=('cuda',)).as_text())


class RefusalTest(parameterized.TestCase):

  def _call(self, tokens=8, implementation='mosaic_gpu', **overrides):
    arguments = dict(x_codes=jnp.ones((tokens, 128), jnp.int8), w_codes=jnp.ones((128, 8), jnp.int8),
                     x_scale=jnp.float32(1), w_scale=jnp.ones((1, 8)))
    return kernels.quantized_matmul(**arguments | overrides, implementation=implementation)

  def test_without_the_device(self):
    with self.assertRaisesRegex(NotImplementedError, 'compute capability 9.0, and this is cpu'):
      self._call()

  @parameterized.parameters(
      (dict(x_scale=jax.ShapeDtypeStruct((8, 2), jnp.float32)), {}, 'one scale a token, not 2 groups'),
      (dict(w_codes=jax.ShapeDtypeStruct((256, 256), jnp.int16)), dict(w_bits=12), 'at most 8 bits, not 12'),
      ({}, dict(out_dtype=jnp.int32), 'writes bfloat16, float16 or float32, not int32'),
      ({}, dict(layout=kernels.Layout.INT4_WIDE), 'layout int4_wide is for activations that are not quantized'),
      ({}, dict(layout=kernels.Layout.DINT4, w_bits=8), 'dINT codes of integers of at most 7 bits, not 8'),
      (dict(x_codes=jax.ShapeDtypeStruct((8, 2**18), jnp.int8)), {}, 'sums over more than 131071 inputs'),
      (dict(x_codes=jax.ShapeDtypeStruct((0, 256), jnp.int8)), {}, 'nothing to multiply'),
      (dict(w_scale=jax.ShapeDtypeStruct((16, 256), jnp.float32)), {}, 'multiple of 32 .* not groups of 16 of 256'),
      (dict(w_multiplier=jax.ShapeDtypeStruct((16, 256), jnp.int32)), {}, 'multiple of 32 .* not groups of 16 of 256'))
  def test_problems_that_no_kernel_takes(self, operands, static, message):
    with self.assertRaisesRegex(NotImplementedError, message):
      _lower(_arguments(8, 256, 256, kernels.Layout.INT4) | operands, **static)

  def test_differentiation(self):
    arguments = _arguments(8, 256, 256, kernels.Layout.INT4)

    def loss(x_scale, rest):
      return jnp.sum(matmul.lowered({**rest, 'x_scale': x_scale}, layout=kernels.Layout.INT4, x_bits=8, w_bits=4,
                                    out_dtype=jnp.float32))

    scale = arguments.pop('x_scale')
    with self.assertRaisesRegex(NotImplementedError, 'has no derivative'):
      jax.eval_shape(jax.grad(loss), scale, arguments)

  def test_a_choice_under_differentiation_falls_back(self):
    def loss(implementation):
      return lambda x_scale: jnp.sum(self._call(x_scale=x_scale, implementation=implementation))

    scale = jnp.float32(0.5)
    with (mock.patch.object(calls, 'check_device'),
          mock.patch.object(dispatch, 'candidates', lambda: ('mosaic_gpu', 'xla'))):
      with self.assertLogs('kernels', 'WARNING') as logs:
        got = jax.grad(loss(None))(scale)
    self.assertIn('not mosaic_gpu, it has no derivative', logs.output[0])
    self.assertEqual(got, jax.grad(loss('xla'))(scale))


class DeviceTest(parameterized.TestCase):
  """What a Hopper GPU is asked for."""

  def _check(self, **device):
    device = mock.Mock(**{'platform': 'gpu', 'compute_capability': '9.0', 'device_kind': 'NVIDIA H200'} | device)
    with mock.patch.object(jax, 'local_devices', lambda: [device]):
      calls.check_device()

  def test_a_hopper_gpu_will_do(self):
    self._check()

  @parameterized.parameters('8.0', '8.9', '10.0')
  def test_other_gpus_will_not(self, capability):
    with self.assertRaisesRegex(NotImplementedError, 'capability 9.0, and this is NVIDIA L4'):
      self._check(compute_capability=capability, device_kind='NVIDIA L4')

  def test_an_older_jax_will_not(self):
    with (mock.patch.object(jax, '__version_info__', (0, 9, 1)), mock.patch.object(jax, '__version__', '0.9.1'),
          self.assertRaisesRegex(NotImplementedError, 'jax 0.10.2 or later, and this is 0.9.1')):
      self._check()

  @parameterized.parameters(ImportError, AttributeError)
  def test_a_jax_whose_mosaic_is_another_will_not(self, error):
    with (mock.patch.object(importlib, 'import_module', side_effect=error('there is no nd_loop')),
          self.assertRaisesRegex(NotImplementedError, f'jax {jax.__version__} lacks .* there is no nd_loop')):
      self._check()


if __name__ == '__main__':
  absltest.main()
