"""The log of the dispatcher says once what runs, what does not, and why."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp

import kernels
from kernels import dispatch

_ONES = lambda *shape: jnp.ones(shape, jnp.int8)
_SCALE = jnp.ones((1, 8))
_CALLS = {
    'codes': (lambda tokens: kernels.quantized_matmul(
        _ONES(tokens, 24), _ONES(24, 8), jnp.float32(1), _SCALE, implementation=None),
              '{} x 24 codes of 8 bits by 24 x 8 of 8 bits in 1 groups, laid out as codes'),
    'weights': (lambda tokens: kernels.weight_only_matmul(
        jnp.ones((tokens, 24)), _ONES(24, 8), _SCALE, w_bits=4, implementation=None),
                '{} x 24 float32 by 24 x 8 of 4 bits in 1 groups, laid out as codes'),
    'activations': (lambda tokens: kernels.quantize_activations(jnp.ones((tokens, 24)), implementation=None),
                    'float32 activations [{}, 24] to 8 bits'),
}


class LogTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    dispatch.say.cache_clear()
    self.enter_context(mock.patch.object(dispatch, 'candidates', lambda: ('mosaic_gpu', 'xla')))

  @parameterized.parameters(*_CALLS)
  def test_a_fallback_is_said_once_for_each_kind_of_problem(self, name):
    call, problem = _CALLS[name]
    for tokens in (3, 5):
      with self.assertLogs('kernels', 'INFO') as logs:
        call(tokens)
      said = [(record.levelname, record.getMessage()) for record in logs.records]
      self.assertEqual(said[1:], [('INFO', f'{problem.format(tokens)}: xla')])
      level, message = said[0]
      self.assertEqual(level, 'WARNING')
      self.assertRegex(message, r': not mosaic_gpu, it needs an NVIDIA GPU of compute capability 9.0, and this is cpu$')
      self.assertStartsWith(message, problem.format(tokens))
    with self.assertNoLogs('kernels', 'INFO'):
      call(3)
      call(5)

  def test_what_takes_a_problem_is_said_and_no_other_is_tried(self):
    functions = {'mosaic_gpu': lambda value: value + 1, 'xla': mock.Mock(side_effect=AssertionError)}
    with self.assertLogs('kernels', 'INFO') as logs:
      self.assertEqual(dispatch.call(functions, None, {'value': 1}, 'a sum'), 2)
    self.assertEqual([(record.levelname, record.getMessage()) for record in logs.records],
                     [('INFO', 'a sum: mosaic_gpu')])

  def test_what_is_asked_for_by_name_never_falls_back(self):
    with self.assertRaisesRegex(NotImplementedError, 'compute capability 9.0'):
      kernels.quantized_matmul(
          _ONES(3, 24), _ONES(24, 8), jnp.float32(1), _SCALE, implementation='mosaic_gpu')


class DeviceTest(parameterized.TestCase):

  @parameterized.parameters('name', 'device')
  def test_the_default_device_counts_where_there_is_one(self, kind):
    default = {'name': 'cpu', 'device': jax.local_devices(backend='cpu')[0]}[kind]
    with mock.patch.object(jax, 'local_devices', lambda backend='gpu': [mock.Mock(platform=backend)]):
      self.assertEqual(dispatch.candidates(), ('mosaic_gpu', 'xla'))
      with jax.default_device(default):
        self.assertEqual(dispatch.device().platform, 'cpu')
        self.assertEqual(dispatch.candidates(), ('xla',))


if __name__ == '__main__':
  absltest.main()
