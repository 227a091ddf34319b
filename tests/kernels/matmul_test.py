"""Quantized matmuls: every implementation gives the same bits, and these are the exact sums."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import kernels
from kernels import layouts
from tests import integer_weight_cases
from tests import product_cases


def _run(arguments, implementation, bits=(8, 8), out_dtype=jnp.float32):
  call = lambda a: kernels.quantized_matmul(
      **a, x_bits=bits[0], w_bits=bits[1], implementation=implementation, out_dtype=out_dtype)
  return np.asarray(jax.jit(call)(jax.tree.map(jnp.asarray, arguments)))


class SimulatedTest(integer_weight_cases.IntegerWeightCases):
  implementation = 'simulated'


class XlaTest(integer_weight_cases.IntegerWeightCases):
  implementation = 'xla'


class QuantizedMatmulTest(parameterized.TestCase):

  def _check(self, arguments, bits):
    """Both implementations give the same bits, the values of a float64 product of the dequantized operands."""
    got = _run(arguments, 'simulated', bits)
    np.testing.assert_array_equal(got, _run(arguments, 'xla', bits))
    want, size = product_cases.reference(arguments)
    self.assertLessEqual((np.abs(got - want) - product_cases.LOST * size).max(), 0)

  @parameterized.product(offsets=list(product_cases.OFFSETS), groups=[(1, 1), (2, 4), (4, 2)])
  def test_offsets_and_groups(self, offsets, groups):
    if 'scalar' in offsets:
      groups = (1, groups[1])
    self._check(product_cases.problem(groups=groups, offsets=offsets, bias=groups[1] == 2), (4, 4))

  @parameterized.parameters(
      (2, 2), (2, 8), (3, 7), (4, 5), (5, 4), (6, 3), (7, 6), (8, 2), (8, 8), (4, 9), (8, 12), (8, 15))
  def test_every_width_of_codes(self, *bits):
    self._check(product_cases.problem(bits=bits, offsets='both, per token', shape=(4, 90, 6)), bits)

  @parameterized.parameters((1, 1, 1), (1, 130, 1), (33, 24, 65), (2, 2, 2, 36, 9))
  def test_shapes_that_are_no_powers_of_two(self, *shape):
    self._check(product_cases.problem(offsets='both, per token', shape=shape, bias=True), (4, 4))

  def test_scales_of_weights_may_be_one_for_all_outputs(self):
    arguments = product_cases.problem(groups=(2, 4), offsets='w')
    for name in ('w_scale', 'w_offset'):
      arguments[name] = arguments[name][:, :1]
    self._check(arguments, (4, 4))

  def test_scale_of_an_activation_may_be_one_for_the_whole_tensor(self):
    arguments = product_cases.problem(groups=(1, 4), offsets='both, per token')
    for name in ('x_scale', 'x_offset'):
      arguments[name] = arguments[name][:1, :1]
    self._check(arguments, (4, 4))

  @parameterized.product(implementation=list(kernels.IMPLEMENTATIONS), bits=[(8, 8), (6, 8), (8, 10)])
  def test_sums_beyond_the_integers_of_float32_are_exact(self, implementation, bits):
    # Products near the largest, odd and even, of one sign: digits are lost wherever float32 adds them past 2^24.
    rng = np.random.default_rng(0)
    large = lambda bits, *shape: rng.integers(2 ** (bits - 1) * 3 // 4, 2 ** (bits - 1), shape)
    x, w = large(bits[0], 9, 20_000), large(bits[1], 20_000, 8)
    self.assertGreater((x @ w).min(), 2**25)
    w_codes = w.astype(np.int8 if bits[1] <= 8 else np.int16)
    got = _run(dict(x_codes=x.astype(np.int8), w_codes=w_codes, x_scale=np.float32(1),
                    w_scale=np.ones((1, 8), np.float32)), implementation, bits)
    np.testing.assert_array_equal(got, (x @ w).astype(np.float32))

  @parameterized.product(implementation=list(kernels.IMPLEMENTATIONS), bits=[(8, 8), (2, 2), (8, 12)])
  def test_sums_of_extreme_codes_are_exact(self, implementation, bits):
    # The largest products of either sign, in one run of the simulated product and one more.
    x, w = (np.full(shape, -(2 ** (b - 1))) for b, shape in zip(bits, ((1, 1025), (1025, 2))))
    w[:, 1] = 2 ** (bits[1] - 1) - 1
    w_codes = w.astype(np.int8 if bits[1] <= 8 else np.int16)
    got = _run(dict(x_codes=x.astype(np.int8), w_codes=w_codes, x_scale=np.float32(1),
                    w_scale=np.ones((1, 2), np.float32)), implementation, bits)
    np.testing.assert_array_equal(got, (x @ w).astype(np.float32))

  @parameterized.parameters(((8, 8), 131_071), ((8, 12), 8191), ((4, 15), 16_383))
  def test_refuses_groups_whose_sums_may_exceed_int32(self, bits, most):
    def shape(inputs, groups=1):
      of = jax.ShapeDtypeStruct
      return jax.eval_shape(
          lambda *a: kernels.quantized_matmul(*a, x_bits=bits[0], w_bits=bits[1]), of((1, inputs), jnp.int8),
          of((inputs, 2), jnp.int8 if bits[1] <= 8 else jnp.int16), of((), jnp.float32), of((groups, 2), jnp.float32))

    self.assertLess(most * 2 ** (sum(bits) - 2), 2**31)
    shape(most)
    shape(2 * most, groups=2)
    with self.assertRaisesRegex(ValueError, f'groups of {most + 1} inputs may exceed int32; .* has at most {most}$'):
      shape(most + 1)

  @parameterized.parameters(*kernels.IMPLEMENTATIONS)
  def test_zero_scales_leave_offsets_and_bias(self, implementation):
    arguments = product_cases.problem(offsets='x, per token', bias=True, groups=(2, 2))
    arguments['x_scale'][0] = 0
    want, size = product_cases.reference(arguments)
    self.assertLessEqual((np.abs(_run(arguments, implementation) - want) - product_cases.LOST * size).max(), 0)
    silent = product_cases.problem(bias=True)
    silent['w_scale'][:] = 0
    np.testing.assert_array_equal(
        _run(silent, implementation), np.broadcast_to(silent['bias'], (3, 5, 7)))

  @parameterized.product(implementation=list(kernels.IMPLEMENTATIONS), dtype=[jnp.bfloat16, jnp.float16])
  def test_the_result_is_rounded_once_to_its_dtype(self, implementation, dtype):
    arguments = product_cases.problem(offsets='both, per token', bias=True)
    got = _run(arguments, implementation, out_dtype=dtype)
    self.assertEqual(got.dtype, dtype)
    np.testing.assert_array_equal(got, _run(arguments, implementation).astype(dtype))

  @parameterized.parameters(*kernels.IMPLEMENTATIONS)
  def test_under_vmap_it_is_a_product_for_each(self, implementation):
    problems = [product_cases.problem(groups=(2, 4), offsets='both, per token', shape=(5, 24, 7), seed=seed)
                for seed in range(3)]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *problems)
    call = lambda a: kernels.quantized_matmul(**a, implementation=implementation)
    want = np.stack([_run(problem, implementation) for problem in problems])
    np.testing.assert_array_equal(jax.jit(jax.vmap(call))(stacked), want)

  @parameterized.parameters('none', 'both, per token')
  def test_without_jit_implementations_agree_too(self, offsets):
    arguments = jax.tree.map(jnp.asarray, product_cases.problem(groups=(1, 2), offsets=offsets, bias=True))
    first, *others = (kernels.quantized_matmul(**arguments, implementation=name) for name in kernels.IMPLEMENTATIONS)
    for other in others:
      np.testing.assert_array_equal(other, first)

  @parameterized.parameters(
      ({'implementation': 'cuda'}, "unknown implementation 'cuda'; there are simulated, xla"),
      ({'x_codes': np.zeros((3, 5, 24), np.uint8)}, 'codes must be int8, or int16 those of w, not uint8 and int8'),
      ({'w_codes': np.zeros((24, 7), np.int32)}, 'codes must be int8, or int16 those of w, not int8 and int32'),
      ({'w_codes': np.zeros((12, 7), np.int8)}, r'cannot contract codes of shape \(3, 5, 24\) with \(12, 7\)'),
      ({'w_codes': np.zeros((2, 24, 7), np.int8)}, 'cannot contract codes'),
      ({'w_scale': np.ones((2, 6), np.float32)}, r'w_scale of shape \(2, 6\) does not fit'),
      ({'w_scale': np.ones(7, np.float32)}, r'w_scale of shape \(7,\) does not fit'),
      ({'x_scale': np.ones((4, 5, 2), np.float32)}, r'x_scale of shape \(4, 5, 2\) does not fit'),
      ({'x_scale': np.ones((5, 2), np.float32)}, r'x_scale of shape \(5, 2\) does not fit'),
      ({'x_scale': np.ones((3, 5, 3), np.float32)}, '3 and 2 groups do not share 24 inputs evenly'),
      ({'w_scale': np.ones((16, 7), np.float32)}, '2 and 16 groups do not share 24 inputs evenly'),
      ({'x_scale': np.ones((3, 5, 2), np.float16)}, 'x_scale and x_offset must be float32'),
      ({'w_offset': np.ones((2, 7), np.int32)}, 'w_scale and w_offset must be float32'),
      ({'x_offset': np.float32(1)}, r'x_offset of shape \(\) does not fit x_scale of shape \(3, 5, 2\)'),
      ({'w_offset': np.ones((1, 7), np.float32)}, r'w_offset of shape \(1, 7\) does not fit w_scale'),
      ({'row_sums': np.ones((3, 5, 3), np.int32)}, r'row_sums must be int32, of \[3, 5\] tokens and runs that divide '
       r'groups of 12 of 24 inputs, not int32 \[3, 5, 3\]'),
      ({'row_sums': np.ones((3, 5, 2), np.int8)}, 'row_sums must be int32'),
      ({'row_sums': np.ones((3, 5, 0), np.int32)}, 'row_sums must be int32'),
      ({'w_scale': None}, 'w_scale must be an array, not a NoneType'),
      ({'column_sums': np.ones(6, np.float32)}, r'column_sums must be float32 \[7\]'),
      ({'bias': np.ones((1, 7), np.float32)}, r'bias of shape \(1, 7\) and dtype float32 does not fit 7 outputs'),
      ({'bias': np.ones(7, np.int32)}, r'bias of shape \(7,\) and dtype int32 does not fit'),
      ({'x_scale': 0.5}, 'x_scale must be an array, not a float'),
      ({'x_codes': [[1] * 24]}, 'x_codes must be an array, not a list'),
      ({'x_codes': jnp.int8(1)}, r'cannot contract codes of shape \(\) with \(24, 7\)'),
      ({'w_codes': jnp.int8(1)}, r'cannot contract codes of shape \(3, 5, 24\) with \(\)'),
      ({'layout': 'int4'}, "must be a kernels.Layout, not 'int4'"),
      ({'x_scale': np.ones((3, 5, 0), np.float32)}, '0 and 2 groups do not share 24 inputs evenly'),
      ({'w_scale': np.ones((0, 7), np.float32), 'row_sums': np.ones((3, 5, 1), np.int32)}, '2 and 0 groups do not'),
      ({'x_bits': 0}, 'x_bits must be an integer from 1 to 8 here, not 0'),
      ({'x_bits': 9}, 'x_bits must be an integer from 1 to 8 here, not 9'),
      ({'w_bits': -5}, 'w_bits must be an integer from 1 to 8 here, not -5'),
      ({'w_bits': 4.0}, 'w_bits must be an integer from 1 to 8 here, not 4.0'),
      ({'w_bits': True}, 'w_bits must be an integer from 1 to 8 here, not True'),
      ({'out_dtype': jnp.int32}, "out_dtype must be a floating dtype, not <class 'jax.numpy.int32'>"),
      ({'out_dtype': 'foo'}, "out_dtype must be a floating dtype, not 'foo'"),
      ({'out_dtype': None}, 'out_dtype must be a floating dtype, not None'),
      ({'implementation': ['xla']}, r"unknown implementation \['xla'\]; there are simulated, xla, mosaic_gpu"),
      ({'w_bits': 12}, 'w_bits must be an integer from 1 to 8 here, not 12'),
      ({'w_codes': np.zeros((24, 7), np.int16)}, 'w_bits must be an integer from 9 to 15 here, not 8'),
      ({'w_codes': np.zeros((24, 7), np.int16), 'w_bits': 16}, 'w_bits must be an integer from 9 to 15 here, not 16'),
      ({'w_special': np.ones(2)}, 'w_special must be a Python number, 1/2, 1/4 or 1/8 of a step, not array'),
      ({'w_zero_point': np.zeros((2, 7), np.int32)}, 'w_zero_point belongs to the layout dint4, not to codes'))
  def test_refuses_operands_that_do_not_fit(self, overrides, message):
    arguments = {**product_cases.problem(groups=(2, 2)), **overrides}
    with self.assertRaisesRegex(ValueError, message):
      kernels.quantized_matmul(**arguments)

  @parameterized.product(
      implementation=list(kernels.IMPLEMENTATIONS), shape=[(0, 24, 7), (2, 0, 7), (2, 3, 24, 0), (0, 0, 0)],
      layout=[layout for layout in kernels.Layout if layout is not kernels.Layout.DINT4])
  def test_nothing_to_sum_leaves_the_bias(self, implementation, shape, layout):
    *batch, inputs, outputs = shape
    bias = jnp.arange(outputs, dtype=jnp.float32)
    w = kernels.prepack(jnp.zeros((inputs, outputs), jnp.int8), layout)
    got = kernels.quantized_matmul(
        jnp.zeros((*batch, inputs), jnp.int8), w, jnp.ones((*batch, 1)), jnp.ones((1, outputs)),
        x_offset=jnp.ones((*batch, 1)), bias=bias, layout=layout, implementation=implementation)
    np.testing.assert_array_equal(got, np.broadcast_to(bias, (*batch, outputs)))

  @parameterized.parameters(*kernels.IMPLEMENTATIONS)
  def test_one_token_without_an_axis(self, implementation):
    arguments = product_cases.problem(groups=(1, 2), offsets='both, per token', shape=(1, 24, 7))
    want = kernels.quantized_matmul(**arguments, implementation=implementation)
    token = {name: a[0] if name[0] == 'x' else a for name, a in arguments.items()}
    np.testing.assert_array_equal(kernels.quantized_matmul(**token, implementation=implementation), want[0])


class DintTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'w_zero_point': None}, 'there is no w_zero_point, which the layout dint4 needs'),
      ({'w_zero_point': np.zeros((1, 64), np.int32)}, r'must be int32 \[2, 64\] like w_scale, not int32 \[1, 64\]'),
      ({'w_zero_point': np.zeros((2, 64), np.int8)}, r'must be int32 \[2, 64\] like w_scale, not int8 \[2, 64\]'),
      ({'w_bits': 4}, 'w_bits must be an integer from 5 to 8 here, not 4'),
      ({'w_bits': 6, 'w_special': 1 / 8}, 'w_bits must be an integer from 7 to 8 here, not 6'),
      ({'w_bits': 9}, 'w_bits must be an integer from 5 to 8 here, not 9'),
      ({'w_zero_point': np.full((2, 64), 14, np.int32)}, 'w_zero_point goes from 0 to 13, and one is 14'),
      ({'w_special': 1 / 3}, '1/2, 1/4 or 1/8 of a step, not 0.333'),
      ({'w_offset': np.zeros((2, 64), np.float32)}, 'the layout dint4 takes w_zero_point instead of w_offset'),
      ({'w_codes': np.zeros((128, 256), np.int8)}, 'cannot contract codes of .* in the layout dint4, for 64 outputs'))
  def test_refuses_operands_that_do_not_fit(self, overrides, message):
    coded, _ = integer_weight_cases.dint_problem(groups=2)
    coded['w_codes'] = layouts.prepack(jnp.asarray(coded['w_codes']), kernels.Layout.DINT4)
    with self.assertRaisesRegex(ValueError, message):
      kernels.quantized_matmul(**coded | overrides, layout=kernels.Layout.DINT4)

  @parameterized.product(implementation=list(kernels.IMPLEMENTATIONS), groups=[1, 4])
  def test_integers_of_eight_bits_give_the_bits_of_plain_ones(self, implementation, groups):
    coded, plain = integer_weight_cases.dint_problem(special=1 / 8, groups=groups, offsets='x, per token')
    coded['w_codes'] = layouts.prepack(jnp.asarray(coded['w_codes']), kernels.Layout.DINT4)
    got = kernels.quantized_matmul(
        **coded, layout=kernels.Layout.DINT4, w_special=1 / 8, implementation=implementation)
    np.testing.assert_array_equal(got, kernels.quantized_matmul(**plain, implementation=implementation))


class TwoLevelTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'w_bits': 5}, 'codes of at most 4 bits in the layouts codes and int4, not to 5 bits in the layout codes'),
      ({'layout': kernels.Layout.ROWS, 'w_codes': np.zeros((128, 256), np.int8)}, 'not to 4 bits in the layout rows'),
      ({'w_multiplier': np.ones((3, 64), np.int32)}, r'int32 \[W, 64\] for W groups of 256 inputs, not .* \[3, 64\]'),
      ({'w_multiplier': np.ones((0, 64), np.int32)}, r'for W groups of 256 inputs, not int32 \[0, 64\]'),
      ({'w_multiplier': np.ones((2, 1), np.int32)}, r'for W groups of 256 inputs, not int32 \[2, 1\]'),
      ({'w_multiplier': np.ones(64, np.int32)}, r'for W groups of 256 inputs, not int32 \[64\]'),
      ({'w_multiplier': np.ones((2, 64), np.int8)}, r'for W groups of 256 inputs, not int8 \[2, 64\]'),
      ({'w_multiplier': np.full((2, 64), 100, np.int32)}, 'w_multiplier goes from 1 to 15, and one is 100'),
      ({'w_multiplier': jnp.zeros((2, 64), jnp.int32)}, 'w_multiplier goes from 1 to 15, and one is 0'),
      ({'w_scale': np.ones((2, 64), np.float32)}, 'w_multiplier takes one w_scale an output, not 2, and no w_offset'),
      ({'w_offset': np.ones((1, 64), np.float32)}, 'w_multiplier takes one w_scale an output, not 1, and no w_offset'),
      ({'w_zero_point': np.ones((1, 64), np.int32)}, 'w_zero_point belongs to the layout dint4, not to codes'))
  def test_refuses_operands_that_do_not_fit(self, overrides, message):
    coded, _ = integer_weight_cases.two_level_problem(groups=2)
    with self.assertRaisesRegex(ValueError, message):
      kernels.quantized_matmul(**coded | {'w_bits': 4} | overrides)

  def test_multipliers_that_a_program_holds_are_checked_when_it_is_traced(self):
    coded, _ = integer_weight_cases.two_level_problem(groups=2)
    multiplier = jnp.asarray(coded.pop('w_multiplier'))
    call = lambda a, multiplier: jax.jit(lambda a: kernels.quantized_matmul(**a, w_multiplier=multiplier, w_bits=4))(a)
    np.testing.assert_array_equal(call(coded, multiplier), _run(coded | {'w_multiplier': multiplier}, 'xla', (8, 4)))
    with self.assertRaisesRegex(ValueError, 'w_multiplier goes from 1 to 15, and one is 16'):
      call(coded, multiplier.at[1, 3].set(16))

  def test_refuses_sums_of_products_with_multipliers_that_may_exceed_int32(self):
    def shape(inputs):
      of = jax.ShapeDtypeStruct
      scale, multiplier = of((1, 2), jnp.float32), of((inputs // 64, 2), jnp.int32)
      call = lambda *a, w_multiplier: kernels.quantized_matmul(*a, w_bits=4, w_multiplier=w_multiplier)
      return jax.eval_shape(
          call, of((1, inputs), jnp.int8), of((inputs, 2), jnp.int8), of((), jnp.float32), scale,
          w_multiplier=multiplier)

    most = 131_071 // 64 * 64
    self.assertEqual(shape(most).shape, (1, 2))
    with self.assertRaisesRegex(ValueError, f'groups of {most + 64} inputs may exceed int32'):
      shape(most + 64)

  @parameterized.product(implementation=list(kernels.IMPLEMENTATIONS), groups=[1, 4], x_groups=[1, 2, 8])
  def test_gives_the_bits_of_the_integers(self, implementation, groups, x_groups):
    coded, plain = integer_weight_cases.two_level_problem(groups=groups, offsets='x, per token')
    rng = np.random.default_rng(0)
    x = {name: rng.uniform(0.01, 1, (5, x_groups)).astype(np.float32) for name in ('x_scale', 'x_offset')}
    got = kernels.quantized_matmul(**coded | x, w_bits=4, implementation=implementation)
    np.testing.assert_array_equal(got, kernels.quantized_matmul(**plain | x, implementation=implementation))


if __name__ == '__main__':
  absltest.main()
