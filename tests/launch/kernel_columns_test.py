"""The benchmark of kernels multiplies what it says: columns of XLA run here, those of kernels are lowered."""

import dataclasses
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp

from kernels import problems
from kernels import rule
from kernels import tuning
from kernels.mosaic import calls
from kernels.mosaic import configs
from launch.benchmarks import kernel_columns
from launch.benchmarks import kernel_sweep
from launch.benchmarks import kernel_timing

_SPREAD = 4
_PROBLEM = kernel_columns.Problem(16, 256, 512)


class ColumnsTest(parameterized.TestCase):

  @parameterized.parameters(*kernel_columns.OF_XLA)
  def test_columns_of_xla_are_products_of_the_same_values(self, name):
    column = kernel_columns.COLUMNS[name]
    with mock.patch.object(kernel_timing, 'copies', lambda size: 2):
      first, second = column.calls(_PROBLEM)
    self.assertEqual(first().shape, (16, 256))
    self.assertFalse((first() == second()).all())
    if column.comparable:
      self.assertLess(column.difference(_PROBLEM, first), 0.01)
      self.assertGreater(column.difference(_PROBLEM, second), 0.5)

  @parameterized.parameters((4096, 4096), (14336, 4096), (4096, 11008))
  def test_reading_lowers(self, outputs, inputs):
    column = kernel_columns.COLUMNS['reading']
    x, w = (jax.ShapeDtypeStruct(shape, jnp.int8) for shape in ((1, inputs), (outputs, inputs // 2)))
    text = jax.jit(column.multiply).trace((x,), (w,)).lower(lowering_platforms=('cuda',)).as_text()
    self.assertIn('mosaic_gpu', text)
    with self.assertRaisesRegex(NotImplementedError, 'at most 64'):
      jax.eval_shape(column.multiply, (jax.ShapeDtypeStruct((65, inputs), jnp.int8),), (w,))

  @parameterized.parameters(*kernel_columns.TUNED)
  def test_columns_of_kernels_lower_in_configurations_from_all_over_a_sweep(self, name):
    column, asked = kernel_columns.COLUMNS[name], []

    def choose(problem):
      asked.append(problem)
      return rule.configuration(problem)

    def lower():
      with mock.patch.object(kernel_timing, 'copies', lambda size: 1), mock.patch.object(calls, 'check_device'):
        call, = column.calls(_PROBLEM)
        multiply = jax.jit(lambda *operands: column.multiply(*operands))  # pylint: disable=unnecessary-lambda
        return multiply.trace(*call.args).lower(lowering_platforms=('cuda',)).as_text()

    with tuning.forced(choose):
      self.assertIn('mosaic_gpu', lower())
    candidates = kernel_sweep.candidates(asked[0])
    self.assertGreater(len(candidates), 8)
    # Evenly spread, from the first to the last; all of them would take minutes.
    for i in range(_SPREAD):
      with tuning.forced(lambda _, i=i: candidates[i * (len(candidates) - 1) // (_SPREAD - 1)]):
        self.assertIn('mosaic_gpu', lower())

  @parameterized.parameters(
      ('dint4 a8', 'w_zero_point', 6, 'DINT4'), ('dint4 a8 g128', 'w_zero_point', 6, 'DINT4'),
      ('w4a8 two-level', 'w_multiplier', 4, 'INT4'))
  def test_codes_are_compared_by_the_values_that_they_stand_for(self, name, integers, bits, layout):
    column, layout = kernel_columns.COLUMNS[name], kernel_columns.kernels.Layout[layout]
    multiply = lambda x, w: kernel_columns.kernels.quantized_matmul(
        x[0], w[0], x[1], w[1], w_bits=bits, layout=layout, **{integers: w[2]})
    with mock.patch.object(kernel_timing, 'copies', lambda size: 2):
      first, second = dataclasses.replace(column, multiply=multiply).calls(_PROBLEM)
    self.assertLess(column.difference(_PROBLEM, first), 0.01)
    self.assertGreater(column.difference(_PROBLEM, second), 0.5)

  @parameterized.parameters(('dint4 a8', 1), ('dint4 a8 g128', 4))
  def test_bytes_of_dint_hold_scales_and_zero_points(self, name, groups):
    self.assertEqual(kernel_columns.COLUMNS[name].bytes(_PROBLEM),
                     256 * 512 / 2 + 8 * groups * 256 + 16 * 512 + 2 * 16 * 256)

  def test_sums_without_scales_of_groups_are_tried_in_tiles_of_many_tokens(self):
    layout = kernel_columns.kernels.Layout.INT4
    largest = lambda problem: max(config.tile_m for config in kernel_sweep.candidates(problem))
    problem = problems.Problem(8192, 4096, 4096, layout, 128)
    self.assertEqual(largest(problem), 128)
    self.assertEqual(largest(problem._replace(two_level=True)), 256)

  @parameterized.product(
      tokens=[1, 16, 40, 64, 80, 128, 200, 512, 2048], size=[(4096, 4096), (22_016, 4096), (5120, 13_824)],
      layout=['INT4', 'DINT4', 'ROWS'], group=[None, 128, 64])
  def test_what_the_rule_chooses_is_tried_but_for_stages(self, tokens, size, layout, group):
    problem = problems.Problem(tokens, *size, kernel_columns.kernels.Layout[layout], group)
    tiling = lambda config: (type(config), config.tile_n, config.tile_m, config.tile_k, config.warpgroups)
    self.assertIn(tiling(rule.configuration(problem)), map(tiling, kernel_sweep.candidates(problem)))

  def test_many_tokens_have_configurations_of_both_bodies_of_groups(self):
    problem = problems.Problem(8192, 4096, 4096, kernel_columns.kernels.Layout.INT4, 128, True)
    found = kernel_sweep.candidates(problem)
    self.assertEqual({config.float8 for config in found}, {True, False})
    self.assertTrue(all(isinstance(config, configs.Prefill) for config in found))

  def test_bytes_are_those_of_operands_and_result(self):
    column = kernel_columns.COLUMNS['w4a8 g128']
    self.assertEqual(column.bytes(_PROBLEM), 256 * 512 / 2 + 4 * 4 * 256 + 16 * 512 + 2 * 16 * 256)


if __name__ == '__main__':
  absltest.main()
