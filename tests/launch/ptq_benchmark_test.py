"""The benchmark of post-training quantization: every method has a row, and mistakes in flags end it before any work."""

import json

from absl.testing import absltest
from absl.testing import parameterized

from tests import launching

_LAYERS, _WIDTH, _FEED_FORWARD, _GROUP = 3, 16, 32, 8
_FLAGS = (f'--layers={_LAYERS}', f'--width={_WIDTH}', f'--feed_forward={_FEED_FORWARD}', f'--group_size={_GROUP}',
          '--sequences=4', '--length=8', '--batch_size=2', '--inputs=16', '--inputs=32', '--outputs=24',
          '--repetitions=2')


class PtqTest(parameterized.TestCase):

  def run_benchmark(self, *flags):
    """(what it printed, its result) of the tiny sizes."""
    output = launching.folder() / f'{self.id()}.json'
    finished = launching.run('benchmark', 'ptq', *_FLAGS, *flags, f'--output={output}')
    self.assertEqual((finished.code, finished.error), (0, ''))
    return finished.output, json.loads(output.read_text())

  def test_every_layer_and_every_method_has_a_row(self):
    printed, found = self.run_benchmark('--methods=gptq,smooth_quant,round_to_nearest')
    self.assertEqual([(row['inputs'], row['outputs']) for row in found['layers']], [(16, 24), (32, 24)])
    for row in found['layers']:
      for key in ('compile_seconds', 'hessian_seconds', 'solve_seconds'):
        self.assertGreater(row[key], 0, key)
      self.assertTrue(0 < row['error_over_rtn'] < 1, row)
      self.assertEqual(row['damping_increases'], 0)
    names = ['gptq', 'smooth_quant+round_to_nearest', 'round_to_nearest']
    self.assertEqual([row['method'] for row in found['methods']], names)
    # Embedding, head and the last norm in floats; codes of 4 bits, a scale and a zero point for a group, two norms.
    weights = 4 * _WIDTH * _WIDTH + 3 * _WIDTH * _FEED_FORWARD
    block = weights // 2 + 5 * weights // _GROUP + 4 * 2 * _WIDTH
    packed = 4 * (2 * found['model']['vocabulary'] + 1) * _WIDTH + _LAYERS * block
    for row in found['methods']:
      self.assertGreater(row['first_block_seconds'], 0)
      self.assertGreater(row['seconds_per_block'], 0)
      self.assertGreater(row['seconds'], row['first_block_seconds'] + row['seconds_per_block'])
      self.assertAlmostEqual(row['packed_gigabytes'] * 1e9, packed, delta=0.5)
    for column in (*found['layers'][0], *found['methods'][0], *names):
      self.assertRegex(printed, rf'(?m)(^| ){column.replace("+", "[+]")}( |$)')

  def test_without_methods_the_layer_alone_is_measured(self):
    _, found = self.run_benchmark('--methods=')
    self.assertLen(found['layers'], 2)
    self.assertEqual(found['methods'], [])

  def test_blocks_that_compile_tell_nothing_of_the_others(self):
    _, found = self.run_benchmark('--methods=round_to_nearest', '--layers=2')
    row, = found['methods']
    self.assertIsNone(row['seconds_per_block'])
    self.assertGreater(row['first_block_seconds'], 0)

  @parameterized.parameters(
      ('--layers=0', 'flag --layers=0: 0 is not a positive integer'),
      ('--inputs=0', 'flag --inputs=0: 0 is not a positive integer'),
      ('--methods=gptq,best', "there is no method 'best', only "),
      ('--group_size=6', 'a layer of 16 inputs: group size 6 does not divide 16 elements'),
      ('--feed_forward=36', 'a layer of 36 inputs: group size 8 does not divide 36 elements'),
      ('--width=392', 'model.width 392 is not a multiple of model.heads 3'),
      ('--output=nowhere/ptq.json', '--output=nowhere/ptq.json: there is no directory nowhere'))
  def test_a_mistake_is_one_line_before_anything_is_measured(self, flag, message):
    finished = launching.run('benchmark', 'ptq', *_FLAGS, flag)
    self.assertEqual((finished.code, finished.output, finished.error.count('\n')), (2, '', 1), finished)
    self.assertStartsWith(finished.error, message)


if __name__ == '__main__':
  absltest.main()
