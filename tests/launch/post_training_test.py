"""A cache of codes that launch.quantize is asked for: what is refused before any work, and what goes on from its tree.
"""

import types

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp

from jaxquant import errors
from jaxquant.numerics import formats
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from launch import post_training
from launch import quantize_config
from launch import settings
from tests import launching
from tests import networks


def _config(**changes):
  config = settings.quantize()
  config.update(changes)
  return config


def _model(style):
  return types.SimpleNamespace(path='DIR', methods=(), decoder=networks.config(style))


class RefusalsTest(parameterized.TestCase):

  def test_values_of_two_ranges(self):
    with self.assertRaisesRegex(errors.UserError, '^values of attention get one range: values of 4 bits .* of 8 bits'):
      quantize_config.recipe(_config(value_bits=4, cache_bits=8), None)

  @parameterized.parameters(1, 9, 0)
  def test_bits_that_there_are_not(self, bits):
    with self.assertRaisesRegex(errors.UserError, f'^config.cache_bits is {bits}; there are 2 to 8 bits, and 16 for'):
      quantize_config.check(_config(cache_bits=bits))

  def test_encoders(self):
    with self.assertRaisesRegex(errors.UserError, '^config.cache_bits is 8, but DIR is an encoder and has no cache$'):
      post_training.check_fit(_config(cache_bits=8), _model('bert'))

  @parameterized.parameters(
      quantizers.DynamicQuantizer(formats.parse('int8')), quantizers.ClipQuantizer(-jnp.ones(()), jnp.ones(()), 4))
  def test_a_tree_whose_operands_are_quantized_is_not_quantized_again(self, quantizer):
    params = trees.put(networks.params('llama'), 'layers/0/attention/value/quantizer', quantizer)
    with self.assertRaisesRegex(errors.UserError, '^DIR is quantized already: layers/0/attention/value has a range$'):
      post_training.prepare(params, _model('llama'), _config())


class LaunchersTest(absltest.TestCase):

  def test_a_quantized_cache_is_named_and_generated_with_and_not_quantized_again(self):
    made, text = launching.folder() / 'cache', f'--text={launching.folder() / "validation.txt"}'
    flags = ['--config=configs/ptq/rtn_w4a4.py', '--config.weights=16', '--config.activations=16',
             '--config.methods=()']
    finished = launching.run('quantize', *flags, f'--model={launching.trained()}', '--config.cache_bits=8', text,
                             f'--workdir={made}')
    self.assertEqual(finished.code, 0, finished)
    self.assertIn('W16A16KV8', finished.output)
    found, = launching.evaluations(made)
    self.assertEqual((found['keys'], found['values']), (8, 8))
    texts = [launching.run('generate', f'--model={made}', '--prompt=The', '--tokens=9', f'--implementation={name}')
             for name in ('simulated', 'auto')]
    self.assertEqual([finished.code for finished in texts], [0, 0], texts)
    self.assertEqual(texts[0].output, texts[1].output)
    again = launching.run('quantize', *flags, f'--model={made}', text, f'--workdir={made}_again')
    self.assertEqual(again.code, 2, again)
    self.assertEqual(again.error, f'{made} is quantized already: layers/0/attention/key has a range\n')


if __name__ == '__main__':
  absltest.main()
