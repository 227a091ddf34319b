"""Round-to-nearest: the codes of `quantize`, the error it records, and what it leaves alone."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.numerics import formats
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers
from jaxquant.transforms import round_to_nearest

_INT4 = formats.IntFormat(4)


def _block():
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(16, 8)).astype(np.float32)
  return {'mlp': {
      'up': {'kernel': kernel, 'bias': np.ones(8, np.float32),
             'kernel_quantizer': quantizers.WeightQuantizer(_INT4), 'input': {'scale': np.ones(16, np.float32)}},
      'down': {'kernel': kernel.T.copy()}, 'zero': {'kernel': np.zeros((16, 8), np.float32)}}}


def _rounded(*names, fmt=_INT4, **options):
  """(params, record) of `_block` with the linears called `names` rounded."""
  transform = round_to_nearest.round_to_nearest(tuple(f'mlp/{name}' for name in names), fmt, **options)
  params, record, decisions = jax.jit(transform.search)(_block(), transform.init(_block()))
  return transform.rewrite(params, record, decisions)['mlp'], record


class RoundToNearestTest(parameterized.TestCase):

  @parameterized.parameters(({},), ({'group_size': 4},), ({'axis': -1},), ({'axis': -1, 'group_size': 2},))
  def test_codes_and_recorded_error_are_those_of_quantize(self, options):
    kernel = _block()['mlp']['up']['kernel']
    want = jax.jit(lambda x: quantize.quantize(x, _INT4, **options))(kernel)
    params, record = _rounded('up', **options)
    jax.tree.map(np.testing.assert_array_equal, params['up']['kernel'], want)
    rounded = np.asarray(quantize.dequantize(want), np.float64)
    np.testing.assert_allclose(
        record['mlp/up']['relative_error'], ((rounded - kernel) ** 2).sum() / (kernel**2.0).sum(), rtol=1e-5)

  def test_only_the_kernel_quantizer_of_training_goes(self):
    params, record = _rounded('up')
    self.assertEqual(set(params['up']), {'kernel', 'bias', 'input'})
    self.assertEqual(set(record), {'mlp/up'})
    np.testing.assert_array_equal(params['down']['kernel'], _block()['mlp']['down']['kernel'])

  def test_scales_of_the_other_axis_are_those_of_the_transpose(self):
    by_output, _ = _rounded('up', fmt=formats.IntFormat(3, symmetric=False), group_size=4)
    by_input, _ = _rounded('down', fmt=formats.IntFormat(3, symmetric=False), group_size=4, axis=-1)
    jax.tree.map(np.testing.assert_array_equal, by_input['down']['kernel'].transposed(), by_output['up']['kernel'])

  def test_a_kernel_of_zeros_has_no_error(self):
    params, record = _rounded('zero')
    self.assertEqual(record['mlp/zero']['relative_error'], 0)
    np.testing.assert_array_equal(quantize.dequantize(params['zero']['kernel']), 0)

  def test_refuses_by_path_what_it_cannot_round(self):
    transform = round_to_nearest.round_to_nearest(('mlp/up',), _INT4)
    twice = {'mlp': {'up': {'kernel': quantize.quantize(jnp.ones((16, 8)), formats.IntFormat(3))}}}
    with self.assertRaisesRegex(errors.UserError, '^mlp/up: already quantized to int3$'):
      transform.init(twice)
    with self.assertRaisesRegex(errors.UserError, '^mlp/down: group size 16 does not divide 8 elements$'):
      round_to_nearest.round_to_nearest(('mlp/up', 'mlp/down'), _INT4, group_size=16).init(_block())


if __name__ == '__main__':
  absltest.main()
