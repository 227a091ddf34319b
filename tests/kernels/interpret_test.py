"""The kernels' own bodies, interpreted: pipelines, addresses, terms and the way to memory, with weights of 8 bits.

Weights of 4 bits are unpacked in registers, which the interpreter does not know; `layouts_test` emulates that part.
Nor does it know sums that cross warpgroups, so that products of few tokens run in one, or stores of single registers.
"""

import contextlib
import io
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp
import numpy as np

import kernels
from kernels import gates
from kernels import layouts
from kernels import tuning
from kernels.mosaic import configs
from kernels.mosaic import matmul
from kernels.mosaic import results
from kernels.mosaic import threads
from kernels.mosaic import token_arithmetic
from tests import behind_cases
from tests import interpreting
from tests import product_cases


def _store(values, out, smem, fold, gated, n, m):
  """What `results.store` does, in arrays."""
  del smem, fold, gated
  outputs, whole = values.shape
  for tokens in {whole, out.shape[0] % whole} - {0}:
    @pl.when((out.shape[0] - m >= whole) == (tokens == whole))
    def _(tokens=tokens):
      out[pl.ds(m, tokens), pl.ds(n, outputs)] = values.T[:tokens]


def _interpreted(config, detect_races=False):
  """Has products run in a configuration, on two multiprocessors: pipelines run on from one tile into the next."""
  stack = contextlib.ExitStack()
  for context in (tuning.forced(lambda _: config), mock.patch.object(configs, 'CORES', 2),
                  mock.patch.object(results, 'store', _store),
                  mock.patch.object(threads, 'unknown', lambda count, index: count),
                  mock.patch.object(results, '_halves', lambda values, fold: gates.halves(values, axis=0)),
                  mock.patch.object(token_arithmetic, 'logistic', lambda values, layout: jax.lax.logistic(values)),
                  interpreting.kernels(detect_races)):
    stack.enter_context(context)
  return stack


@interpreting.needed
class InterpretTest(parameterized.TestCase):

  @parameterized.parameters(
      (configs.Prefill(tile_m=64, stages=2), (72, 384, 256), 'both, per token', jnp.bfloat16),
      (configs.Prefill(tile_m=32, tile_k=256, stages=3, panel=1), (96, 512, 384), 'none', jnp.bfloat16),
      (configs.Prefill(tile_m=32, stages=4, panel=1), (96, 512, 384), 'none', jnp.bfloat16),
      (configs.Prefill(tile_m=64, stages=5, cluster=2), (72, 896, 256), 'none', jnp.bfloat16),
      (configs.Prefill(tile_n=128, tile_m=16, stages=2, warpgroups=1), (33, 256, 128), 'w', jnp.float32),
      (configs.Prefill(tile_m=64, stages=2, cluster=2), (136, 384, 512), 'none', jnp.bfloat16),
      (configs.Decode(tile_m=8, tile_k=128, stages=2, warpgroups=1), (5, 640, 128), 'both, scalar', jnp.bfloat16),
      (configs.Decode(tile_m=16, stages=4, warpgroups=1), (24, 256, 100), 'x, per token', jnp.float32),
      (configs.Decode(tile_m=16, tile_k=128, stages=2, warpgroups=1, shared=True, copying=False), (24, 1024, 100),
       'x, per token', jnp.float32),
      (configs.Decode(tile_m=8, tile_k=256, stages=2, warpgroups=1), (5, 2688, 128), 'x, per token', jnp.float32),
      (configs.Prefill(tile_m=64, stages=2), (72, 384, 256), 'both, per token', jnp.float32, 3),
      (configs.Decode(tile_m=8, tile_k=64, stages=2, warpgroups=1), (5, 640, 128), 'w', jnp.float32, 10))
  def test_products(self, config, shape, offsets, dtype, groups=1):
    arguments = product_cases.problem(bits=(8, 8), groups=(1, groups), offsets=offsets, bias=True, shape=shape)
    want, size = product_cases.reference(arguments)
    operands = dict.fromkeys(['x_offset', 'w_offset', 'row_sums', 'column_sums']) | jax.tree.map(jnp.asarray, arguments)
    with _interpreted(config):
      got = matmul.lowered(operands, layout=kernels.Layout.CODES, x_bits=8, w_bits=8, out_dtype=dtype)
    self.assertEqual((got.shape, got.dtype), (want.shape, dtype))
    rounding = float(jnp.finfo(dtype).eps) / 2
    excess = np.abs(np.asarray(got, np.float64) - want) - rounding * np.abs(want) - product_cases.LOST * size
    self.assertLessEqual(excess.max(), 0)

  @parameterized.product(behind=behind_cases.BEHIND, config=[
      configs.Decode(tile_m=8, tile_k=128, stages=2, warpgroups=1), configs.Prefill(tile_m=64, stages=2)])
  def test_what_happens_behind(self, behind, config):
    arguments = product_cases.problem(bits=(8, 8), offsets='none', bias=True, shape=(12, 640, 256))
    arguments['x_scale'] = arguments['x_scale'] / np.float32(2**15)
    operands = dict.fromkeys(['x_offset', 'w_offset', 'row_sums', 'column_sums']) | jax.tree.map(jnp.asarray, arguments)

    def run(asked):
      with _interpreted(config):
        return np.asarray(matmul.lowered(
            operands, layout=kernels.Layout.CODES, x_bits=8, w_bits=8, out_dtype=jnp.bfloat16, behind=asked))

    plain, asked = run(kernels.Behind()), behind_cases.behind(*behind)
    got = run(asked)
    self.assertEqual(got.shape, (12, asked.outputs(256)))
    self.assertLessEqual(behind_cases.excess(got, plain, asked), 0)

  @parameterized.product(tile_m=[24, 192], dtype=[jnp.bfloat16, jnp.float32])
  def test_what_a_copy_may_still_read_is_not_replaced(self, tile_m, dtype):
    """Behind the last chunk of a tile, whose number is odd here, the next tile's first takes a slot."""
    arguments = product_cases.problem(
        bits=(8, 8), groups=(1, 1), offsets='none', bias=True, shape=(3 * tile_m, 128, 128))
    operands = dict.fromkeys(['x_offset', 'w_offset', 'row_sums', 'column_sums']) | jax.tree.map(jnp.asarray, arguments)
    config, said = configs.Prefill(tile_m=tile_m, tile_k=128, stages=2), io.StringIO()
    traced = mock.patch.object(matmul, '_call', matmul._call.__wrapped__)  # not by jit, which keeps what is traced
    with traced, _interpreted(config, detect_races=True), contextlib.redirect_stdout(said):
      jax.block_until_ready(
          matmul.lowered(operands, layout=kernels.Layout.CODES, x_bits=8, w_bits=8, out_dtype=dtype))
    self.assertNotIn('RACE', said.getvalue())

  @parameterized.parameters(
      (configs.Prefill(tile_m=64, stages=2), 1, 4), (configs.Prefill(tile_m=64, stages=2), 2, 4),
      (configs.Decode(tile_m=8, tile_k=128, stages=2, warpgroups=1), 1, 1))
  def test_sums_at_hand_are_those_that_count(self, config, groups, runs):
    shape = (5, 512, 128)
    arguments = product_cases.problem(
        bits=(8, 8), groups=(1, groups), offsets='both, per token', bias=True, shape=shape)
    want, size = product_cases.reference(arguments)
    row_sums = arguments['x_codes'].reshape(5, runs, -1).sum(axis=-1, dtype=np.int32)
    operands = jax.tree.map(jnp.asarray, arguments) | {
        'row_sums': jnp.asarray(row_sums), 'column_sums': layouts.column_sums(
            *(jnp.asarray(arguments[name]) for name in ('w_codes', 'w_scale', 'w_offset')))}

    def run(**others):
      with _interpreted(config):
        return np.asarray(matmul.lowered(
            operands | others, layout=kernels.Layout.CODES, x_bits=8, w_bits=8, out_dtype=jnp.float32), np.float64)

    self.assertLessEqual((np.abs(run() - want) - product_cases.LOST * size).max(), 0)
    # Others would be seen: sums of rows meet the offsets of weights, those of columns the offsets of tokens.
    more = run(row_sums=operands['row_sums'] + 100) - want
    spread = np.repeat(arguments['w_offset'], runs // groups, axis=0).sum(axis=0)
    np.testing.assert_allclose(more, 100 * arguments['x_scale'] * spread, rtol=0, atol=product_cases.LOST * size.max())
    more = run(column_sums=operands['column_sums'] + 100) - want
    np.testing.assert_allclose(
        more, np.broadcast_to(100 * arguments['x_offset'], more.shape), rtol=0, atol=product_cases.LOST * size.max())


if __name__ == '__main__':
  absltest.main()
