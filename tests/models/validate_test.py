"""What fits a model and what does not, by path."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from jaxquant import errors
from jaxquant.layers import attention
from jaxquant.models import staging
from jaxquant.models import validate
from jaxquant.numerics import formats
from jaxquant.numerics import hadamard
from jaxquant.numerics import qtensor
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from tests import networks

_CLIP = quantizers.ClipQuantizer(np.float32(-1), np.float32(1), 4)
_WEIGHTS = quantizers.WeightQuantizer(formats.parse('int4'))
_CODES = qtensor.QTensor(np.zeros((8, 16), np.uint8), np.ones((1, 16), np.float32), None, formats.parse('int4'), -2, 16)
_VECTOR = np.ones(16, np.float32)


def _problems(style: str, **changes) -> str:
  """What is wrong with the tree once `changes`, by path, are made in it; an empty string if nothing is."""
  params = networks.params(style)
  for path, value in changes.items():
    params = trees.put(params, path, value)
  try:
    validate.validate(params, networks.config(style))
  except errors.CheckpointError as error:
    return str(error)
  return ''


class ValidateTest(parameterized.TestCase):

  @parameterized.parameters(*networks.STYLES)
  def test_abstract_tree_is_that_of_initialization(self, style):
    init = staging.make(networks.config(style)).init
    want = jax.eval_shape(init, jax.random.key(0), networks.tokens(1))['params']
    self.assertEqual(validate.abstract_params(networks.config(style)), want)

  @parameterized.parameters(*networks.STYLES)
  def test_float_tree_fits(self, style):
    self.assertEqual(_problems(style), '')

  @parameterized.parameters(*networks.STYLES)
  def test_tree_of_codes_with_everything_that_may_stand_in_it_fits(self, style):
    config, params = networks.config(style), networks.params(style)
    changes = {f'{site.name}/quantizer': _CLIP for site in staging.model_sites(config)}
    changes |= {f'layers/0/attention/{name}/quantizer': _CLIP for name in attention.OPERANDS}
    changes |= {'layers/0/attention/q/input/shift': _VECTOR, 'layers/0/mlp/input/scale': _VECTOR,
                'layers/0/mlp/input/gather': np.arange(16), 'layers/0/mlp/input/clip': np.float32([-1, 1]),
                'layers/0/mlp/down/input/hadamard': hadamard.Hadamard(8)}
    for i, path in enumerate(trees.linears(params)):
      fmt = formats.parse(('int4', 'uint8')[i % 2])
      changes[f'{path}/kernel'] = jax.eval_shape(lambda x: quantize.quantize(x, fmt), trees.get(params, path)['kernel'])
    self.assertEqual(_problems(style, **changes), '')
    self.assertEqual(_problems(style, **{f'{path}/kernel_quantizer': _WEIGHTS for path in trees.linears(params)}), '')

  @parameterized.named_parameters(
      ('missing', 'layers/0/mlp/up/kernel', None, 'missing'),
      ('missing gain', 'final_norm/scale', None, 'missing'),
      ('of another shape', 'head/kernel', np.ones((16, 31), np.float32), r'shape (16, 31) instead of (16, 32)'),
      ('codes of another shape', 'head/kernel', _CODES, r'shape (16, 16) instead of (16, 32)'),
      ('bias of another shape', 'layers/0/mlp/up/bias', _VECTOR, 'shape (16,) instead of (32,)'),
      ('bias of a norm', 'layers/0/mlp_norm/bias', _VECTOR, 'not in the model'),
      ('further layer', 'layers/1/mlp/up/kernel', _VECTOR, 'not in the model'),
      ('further kernel', 'tail/kernel', _VECTOR, 'not in the model'),
      ('quantizer beside a kernel', 'layers/0/mlp/up/quantizer', _CLIP, 'not in the model'),
      ('scale beside a kernel', 'layers/0/attention/q/scale', _VECTOR, 'not in the model'),
      ('quantizer of a lookup', 'embedding/input/quantizer', _CLIP, 'not in the model'),
      ('quantizer of a norm', 'layers/0/mlp_norm/input/quantizer', _CLIP, 'not in the model'),
      ('operand elsewhere', 'layers/0/mlp/query/quantizer', _CLIP, 'not in the model'),
      ('operand of no layer', 'layers/7/attention/query/quantizer', _CLIP, 'not in the model'),
      ('unknown entry', 'layers/0/mlp/input/smooth', _VECTOR, 'not in the model'),
      ('kernel quantizer of no linear', 'layers/0/mlp/kernel_quantizer', _WEIGHTS, 'not in the model'),
      ('codes for a gain', 'final_norm/scale', _CODES, 'a QTensor cannot stand here'),
      ('quantizer for a kernel', 'head/kernel', _CLIP, 'a ClipQuantizer cannot stand here'),
      ('array for a quantizer', 'layers/0/mlp/input/quantizer', _VECTOR, 'an array cannot stand here'),
      ('array for a transform', 'layers/0/mlp/input/hadamard', _VECTOR, 'an array cannot stand here'),
      ('transform for a scale', 'layers/0/mlp/input/scale', hadamard.Hadamard(8), 'a Hadamard cannot stand here'),
      ('quantizer of weights for inputs', 'head/input/quantizer', _WEIGHTS, 'a WeightQuantizer cannot stand here'),
      ('codes in a specification', 'layers/0/mlp/input/scale', _CODES, 'a QTensor cannot stand here'),
      ('quantizer of inputs for weights', 'head/kernel_quantizer', _CLIP, 'a ClipQuantizer cannot stand here'))
  def test_what_does_not_fit_is_named(self, path, value, problem):
    self.assertEqual(_problems('llama', **{path: value}), f'the tree does not fit the model: {path}: {problem}')

  def test_residual_entries_of_post_norm_blocks_fit(self):
    entries = {f'layers/0/{module}_residual': {'scale': _VECTOR, 'shift': _VECTOR} for module in ('attention', 'mlp')}
    self.assertEqual(_problems('bert', **entries), '')

  @parameterized.named_parameters(
      ('one without the other', 'layers/0/mlp_residual/shift', None, 'missing'),
      ('unknown entry', 'layers/0/mlp_residual/gather', _VECTOR, 'not in the model'),
      ('input of a lookup', 'types/input/quantizer', _CLIP, 'not in the model'),
      ('of a linear', 'layers/0/attention/o_residual/scale', _VECTOR, 'not in the model'),
      ('of the head', 'final_residual/scale', _VECTOR, 'not in the model'),
      ('of no layer', 'layers/1/attention_residual/shift', _VECTOR, 'not in the model'),
      ('a quantizer', 'layers/0/mlp_residual/shift', _CLIP, 'a ClipQuantizer cannot stand here'),
      ('of another shape', 'layers/0/mlp_residual/shift', np.ones(8), 'shape (8,) instead of (16,)'))
  def test_what_does_not_fit_an_encoder_is_named(self, path, value, problem):
    message = _problems('bert', **{'layers/0/mlp_residual': {'scale': _VECTOR, 'shift': _VECTOR}, path: value})
    self.assertEqual(message, f'the tree does not fit the model: {path}: {problem}')

  def test_pre_norm_blocks_have_no_residual_entries(self):
    self.assertEndsWith(
        _problems('opt', **{'layers/0/mlp_residual/scale': _VECTOR}), 'mlp_residual/scale: not in the model')

  def test_position_tables_and_biases_belong_to_one_style_only(self):
    self.assertIn('positions/kernel: not in the model', _problems('llama', **{'positions/kernel': np.ones((16, 16))}))
    self.assertIn('layers/0/mlp/up/bias: missing', _problems('opt', **{'layers/0/mlp/up/bias': None}))

  def test_many_problems_are_three_and_a_number(self):
    removed = {f'layers/0/mlp/{name}/kernel': None for name in ('gate', 'up', 'down')}
    message = _problems('llama', **removed, **{'head/kernel': None, 'extra': _VECTOR})
    self.assertRegex(message, r': extra: not in the model; (\S+/kernel: missing; ){2}and 2 more$')


if __name__ == '__main__':
  absltest.main()
