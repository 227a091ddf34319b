"""Values of a configuration that are out of bounds are refused by name; those at the ends that are allowed are not."""

import re

from absl.testing import absltest
from absl.testing import parameterized

from jaxquant import errors
from launch import settings
from launch import validation

_COUNTS = (
    'model.layers', 'training.steps', 'training.keep_newest', 'qat.weight_group_size', 'qat.weight_start',
    'kurtosis.stride', 'kurtosis.every', 'evaluation.batch_size', 'ptq.group_size')
_POSITIVE = (
    'model.norm_epsilon', 'model.rope_theta', 'optimizer.learning_rate', 'optimizer.epsilon', 'optimizer.clip_norm')
_NOT_NEGATIVE = (
    'optimizer.weight_decay', 'optimizer.range_multiplier', 'optimizer.range_decay', 'kurtosis.weight', 'kure.weight')


def _check(key: str, value, defaults=settings.train):
  config = defaults()
  config.update_from_flattened_dict({key: value})
  validation.check(config, defaults())


class BoundsTest(parameterized.TestCase):

  @parameterized.parameters(
      *((key, 0, 'at least 1') for key in _COUNTS), *((key, 0.0, 'above 0') for key in _POSITIVE),
      *((key, -1e-3, 'above 0') for key in _POSITIVE), *((key, -1e-3, 'at least 0') for key in _NOT_NEGATIVE),
      ('training.keep_best', -1, 'at least 0'), ('optimizer.warmup_steps', -1, 'at least 0'),
      *((f'optimizer.{key}', value, 'at least 0 and below 1') for key in ('b1', 'b2') for value in (-0.1, 1.0)),
      ('optimizer.final_fraction', 1.1, 'at least 0 and at most 1'), ('qat.bits', 9, 'at least 2 and at most 8'),
      ('optimizer.final_fraction', -0.1, 'at least 0 and at most 1'), ('qat.bits', 1, 'at least 2 and at most 8'),
      ('kure.target', 0.9, 'at least 1'), ('ptq.percentile', 50.0, 'above 50 and at most 100'))
  def test_refused(self, key, value, bounds):
    with self.assertRaisesRegex(errors.UserError, rf'^config\.{key} is {value}; it must be {bounds}$'):
      _check(key, value)

  @parameterized.parameters(('gptq.damping', 0.0), ('gptq.damping', -0.01), ('clip_search.least', 1.0),
                            ('clip_search.steps', 0), ('smooth_quant.exponent', 1.1), ('gptq.block_size', 0))
  def test_of_methods_refused(self, key, value):
    with self.assertRaisesRegex(errors.UserError, rf'^config\.{key} is {value}; it must be '):
      _check(key, value, settings.quantize)

  @parameterized.parameters(settings.train, settings.quantize)
  def test_every_number_has_bounds(self, defaults):
    for key, default in sorted(defaults().to_dict().items()):
      for name, value in (default.items() if isinstance(default, dict) else [('', default)]):
        if type(value) in (int, float):
          with self.subTest(key=key, name=name), self.assertRaises(errors.UserError):
            _check(f'{key}.{name}'.rstrip('.'), type(value)(-1), defaults)

  @parameterized.parameters(
      *((key, 1) for key in _COUNTS), *((key, 0.0) for key in _NOT_NEGATIVE), ('training.keep_best', 0),
      ('optimizer.b1', 0.0), ('optimizer.final_fraction', 0.0), ('optimizer.final_fraction', 1.0), ('kure.target', 1.0),
      ('ptq.percentile', 100.0))
  def test_allowed(self, key, value):
    _check(key, value)

  @parameterized.parameters(
      ('qat.ranges', (('.*', 0.0),), "has 0.0 for '.*'; it must be above 0"),
      ('qat.ranges', (('.*', '3'),), "holds ('.*', '3'), not a pattern and a number"),
      ('smooth_quant.exponents', (('.*', 0.5), ('a', 1.5)), "has 1.5 for 'a'; it must be at least 0 and at most 1"),
      ('smooth_quant.exponents', ('.*', 0.5), "is '.*', not of type tuple"))
  def test_patterns_with_numbers(self, key, value, problem):
    defaults = settings.train if key.startswith('qat') else settings.quantize
    with self.assertRaisesRegex(errors.UserError, f'^config.{key} {re.escape(problem)}$'):
      _check(key, value, defaults)

  @parameterized.parameters('inf', 'nan')
  def test_what_is_not_finite_is_refused(self, value):
    with self.assertRaisesRegex(errors.UserError, f'^config.optimizer.clip_norm is {value}$'):
      _check('optimizer.clip_norm', float(value))


if __name__ == '__main__':
  absltest.main()
