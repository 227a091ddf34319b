"""The benchmark of whole models runs every column at every case, on trees that the model evaluates as any other."""

import json
import math
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.layers import device_kernels
from jaxquant.layers import linear
from jaxquant.models import config as model_config
from jaxquant.models import decoding
from jaxquant.models import validate
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.numerics import two_level
from kernels import dispatch
from kernels.mosaic import calls
from launch.benchmarks import model_columns
from launch.benchmarks import model_kernels
from tests import launching
from tests import networks

_CONFIG = model_config.TransformerConfig(
    vocabulary=32, width=128, layers=2, heads=4, feed_forward=256, max_length=16, dtype='float32')
_FLAGS = ('--vocabulary=32', '--width=128', '--layers=1', '--heads=4', '--feed_forward=128', '--implementation=xla')

_extend = networks.quick_jit(
    decoding.extend.__wrapped__, static_argnames=('config', 'implementation', 'first'), donate_argnames='cache')


class ColumnsTest(parameterized.TestCase):

  @parameterized.parameters(*model_columns.COLUMNS)
  def test_trees_are_of_the_model_and_their_weights_of_one_size(self, name):
    column = model_columns.COLUMNS[name]
    params = model_columns.prepared(_CONFIG, column, 'xla')
    validate.validate(params, _CONFIG)
    for path in trees.linears(params):
      kernel = trees.get(params, path)['kernel']
      if column.weights is not None and path.startswith('layers/'):
        self.assertEqual(kernel.format.bits, column.weights)
        self.assertEqual(kernel.group_size, column.group_size or kernel.size)
        codes = np.asarray(kernel.unpacked())
        self.assertEqual((codes.min(), codes.max()), (kernel.format.minimum, kernel.format.maximum))
        # The only scale of an output is its own base.
        self.assertEqual(two_level.levels(kernel.scale) is not None, column.two_level or kernel.groups == 1)
      else:
        self.assertEqual(kernel.dtype, jnp.bfloat16)
      self.assertAlmostEqual(np.std(np.float32(linear.dense_kernel({'kernel': kernel}))) / 0.02, 1, delta=0.1)
    found = [trees.get(params, site)['quantizer'] for site in trees.inputs(params)]
    quantized = {getattr(quantizer, 'format', quantizer).bits for quantizer in found}
    self.assertEqual(quantized, {column.activations, column.cache} - {None})
    self.assertEqual(any(isinstance(quantizer, quantizers.ClipQuantizer) for quantizer in found), column.static)
    blocks = params['layers']
    self.assertFalse(jnp.array_equal(*(jax.tree.leaves(blocks[i]['mlp']['up']['kernel'])[0] for i in blocks)))

  @parameterized.parameters('w8a8', 'w4a8', 'w4a4', 'w4a8 g128', 'w4a8 two-level', 'w4a4 static')
  def test_logits_are_those_of_the_whole_forward_of_the_tree_that_is_not_laid_out(self, name):
    params, ids = model_columns.prepared(_CONFIG, model_columns.COLUMNS[name], 'xla'), networks.tokens(2)
    want = networks.evaluator(_CONFIG, 'xla', networks.quick_jit)(params, ids)
    laid_out, cache = device_kernels.laid_out(params), decoding.empty(params, _CONFIG, 2, 8)
    self.assertIn('qkv', laid_out['layers']['0']['attention'])
    self.assertIn('gate_up', laid_out['layers']['0']['mlp'])
    counts = np.full(2, 7)
    options = dict(config=_CONFIG, implementation='auto')
    logits, cache = _extend(laid_out, cache, ids[:, :7], counts, first=True, **options)
    np.testing.assert_allclose(logits, want[:, 6], rtol=0, atol=1e-5 * np.abs(want).max())
    logits, cache = _extend(laid_out, cache, ids[:, 7:], counts // 7, **options)
    np.testing.assert_allclose(logits, want[:, 7], rtol=0, atol=1e-5 * np.abs(want).max())

  @parameterized.parameters(
      ('w4a4', 16, 9), ('w4a4 static', 16, 7), ('w4a4 kv8', 1, 9), ('w4a4 static kv8', 1, 7), ('w4a16', 16, 5),
      ('w4a4 static', 80, 8))
  def test_a_step_of_a_block_is_few_kernels_of_a_gpu(self, column, batch, count):
    config = model_config.TransformerConfig(
        vocabulary=32, width=512, layers=1, heads=4, kv_heads=4, feed_forward=1024, max_length=64)
    params = device_kernels.laid_out(model_columns.prepared(config, model_columns.COLUMNS[column], 'xla'))
    cache = jax.eval_shape(lambda: decoding.empty(params, config, batch, 64))
    call = jax.jit(decoding.extend.__wrapped__, static_argnames=('config', 'implementation'))
    of = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
    with (mock.patch.object(calls, 'check_device'),
          mock.patch.object(dispatch, 'candidates', lambda: ('mosaic_gpu', 'xla'))):
      text = call.trace(params, cache, of(batch, 1), of(batch), config=config, implementation='auto').lower(
          lowering_platforms=('cuda',)).as_text()
    self.assertEqual(text.count('stablehlo.custom_call @mosaic_gpu'), count)

  def test_groups_divide_inputs(self):
    with self.assertRaisesRegex(errors.UserError, 'weights of 16 inputs: group size 128'):
      model_columns.prepared(networks.config('llama'), model_columns.COLUMNS['w4a16'], 'xla')


class KernelsTest(absltest.TestCase):

  def test_launches_of_one_kind_are_added_up(self):
    step = [('quantize_4096_mosaic_gpu_kernel', 9e-6), ('fusion_12', 1e-6), ('fusion_3_1', 2e-6), ('gemm', 5e-5)]
    found = model_kernels.by_name([('once', 1.0), *step * 20], 20)
    self.assertEqual([(each.name, each.launches) for each in found],
                     [('gemm', 1), ('quantize_4096', 1), ('fusion', 2)])
    for each, seconds in zip(found, (5e-5, 9e-6, 3e-6)):
      self.assertAlmostEqual(each.seconds, seconds)
    self.assertEqual(model_kernels.table(found).splitlines()[-2:],
                     [f'fusion{2.0:48.1f}{1.5:10.2f}{3.0:10.1f}', f'together{4.0:46.1f}{62.0:20.1f}'])


class BenchmarkTest(absltest.TestCase):

  def test_every_column_has_every_case(self):
    output = launching.folder() / 'models.json'
    finished = launching.run(
        'benchmark', 'models', *_FLAGS, '--contexts=8', '--batches=1,3', '--prompt=8', '--steps=2', '--repetitions=2',
        f'--columns={",".join(model_columns.COLUMNS)}', f'--output={output}')
    self.assertEqual(finished.code, 0, finished.error)
    found = json.loads(output.read_text())
    cases = [('prefill', 1, 8), ('burst', 1, 8), ('burst', 3, 8), ('calls', 1, 8)]
    rows = {(row['kind'], row['batch'], row['context'], row['column']): row for row in found['rows']}
    self.assertEqual(set(rows), {(*case, name) for case in cases for name in model_columns.COLUMNS})
    for (kind, batch, context, name), row in rows.items():
      self.assertLen(row['times'], 2)
      tokens = batch * (context if kind == 'prefill' else 1)
      self.assertAlmostEqual(row['tokens_per_second'] * row['seconds'] / tokens, 1)
      self.assertTrue(0 < row['ratio'] < math.inf)
      self.assertEqual(row['ratio'] == 1, name == 'bf16')
    # Linears of 16 bits, of which four codes take the room of one; gains of float32; rows of the table; the cache.
    linears, head = 4 * 128 * 128 + 3 * 128 * 128, 32 * 128
    self.assertEqual(rows['burst', 3, 8, 'bf16']['bytes'],
                     2 * (linears + head) + 4 * 3 * 128 + 3 * 2 * 128 + 3 * 8 * 2 * 2 * 128)
    self.assertEqual(rows['burst', 3, 8, 'bf16']['bytes'] - rows['burst', 3, 8, 'w4a8']['bytes'],
                     linears * 3 // 2 - 4 * 7 * 128)
    for name in model_columns.COLUMNS:
      self.assertIn(name, finished.output)

  def test_mistakes_are_one_line(self):
    for flag, words in (('--columns=w2a2', 'no column w2a2'), ('--contexts=64', 'integers from 65 on'),
                        ('--batches=', '--batches takes integers'), ('--heads=3', 'not a multiple'),
                        ('--kernels', '--kernels listens to a GPU')):
      finished = launching.run('benchmark', 'models', *_FLAGS, flag)
      self.assertEqual((finished.code, finished.error.count('\n')), (2, 1), finished)
      self.assertIn(words, finished.error)


if __name__ == '__main__':
  absltest.main()
