"""Every configuration of post-training quantization describes a recipe that runs, with the numbers of its name."""

import ast
import importlib
import inspect
import re
import types

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.calibration import driver
from jaxquant.models import staging
from jaxquant.models import validate
from jaxquant.numerics import qtensor
from jaxquant.numerics import trees
from jaxquant.numerics import two_level
from launch import post_training
from launch import quantize_config
from launch import settings
from launch import validation
from tests import networks
from tests import source

_NAMES = [path.stem for path in sorted((source.ROOT / 'configs' / 'ptq').glob('*.py'))]
_NUMBERS = re.compile(r'w(?P<weights>\d+)a(?P<activations>\d+)(v(?P<values>\d+))?(_g(?P<group>\d+))?\Z')


def _arguments(name):
  """The arguments of a file that its docstring names."""
  text = ast.get_docstring(source.parse(f'configs/ptq/{name}.py'))
  return list(dict.fromkeys(re.findall(rf'\b{name}\.py:(\w+(?:,\w+)*)', text)))


# A file, and an argument where it takes one: what is published, each of it.
_SETTINGS = [(name, *argument) for name in _NAMES for argument in ((), *zip(_arguments(name)))]
# One of each composition of methods is run, on one architecture.
_RUN = [
    ('llama', 'gptq_w3a16_g128'), ('opt', 'awq_w4a16_g128'), ('llama', 'smooth_quant_o2_w8a8'),
    ('bert', 'outlier_suppression_bert_w6a6'), ('opt', 'outlier_suppression_w4a4', 'opt,512'),
    ('opt', 'aqas_dint_w3a8v3', 'opt'), ('opt', 'adadim_gptq_w3a16_g128')]


def _config(name, *argument):
  return importlib.import_module(f'configs.ptq.{name}').get_config(*argument)


def _run(config, style, batches):
  """What the driver makes of a network by a configuration."""
  architecture = networks.config(style)
  recipe = quantize_config.recipe(config, config.activation_mode if config.activations < 16 else None)
  return driver.run(
      networks.params(style), staging.staged(architecture), recipe.steps(staging.model_sites(architecture)), batches)


def _windows(config):
  """The calibration windows of a model that was trained on windows of 16 tokens."""
  return post_training.windows(config, types.SimpleNamespace(length=16), np.arange(640) % 32)


class ConfigsTest(parameterized.TestCase):

  @parameterized.parameters(*_SETTINGS)
  def test_describes_a_recipe(self, name, *argument):
    config = _config(name, *argument)
    quantize_config.check(config)
    recipe = quantize_config.recipe(config, config.activation_mode if config.activations < 16 else None)
    steps = recipe.steps(staging.model_sites(networks.config('llama')))
    quantized = [bits for bits in (config.activations, config.value_bits, config.cache_bits) if bits < 16]
    self.assertLen(steps, len(config.methods) + len(quantized))
    self.assertIn(f'--config=configs/ptq/{name}.py', importlib.import_module(f'configs.ptq.{name}').__doc__)

  @parameterized.parameters(*_SETTINGS)
  def test_has_the_numbers_of_its_name(self, name, *argument):
    config, number = _config(name, *argument), lambda text: None if text is None else int(text)
    named = _NUMBERS.search(name)
    self.assertEqual(config.weights, number(named['weights']))
    self.assertEqual(config.activations, number(named['activations']))
    self.assertEqual(config.value_bits, number(named['values']) or 16)
    groups = number(named['group'] or ''.join(argument).partition(',')[2] or None)
    self.assertEqual(config.group_size, groups)
    self.assertEqual(config.activation_group_size, None if config.activations == 16 else groups)

  @parameterized.parameters(*_NAMES)
  def test_names_the_arguments_that_it_takes_and_each_is_another_setting(self, name):
    get_config = importlib.import_module(f'configs.ptq.{name}').get_config
    default = [parameter.default for parameter in inspect.signature(get_config).parameters.values()]
    self.assertEqual(bool(default), bool(_arguments(name)))
    settings_of = [_config(name), *(_config(name, argument) for argument in {*_arguments(name)} - {*default})]
    self.assertLen({str(config.to_dict()) for config in settings_of}, len(settings_of))

  @parameterized.parameters(
      ({'activation_mode': 'none'}, "activation_mode is 'none' and config.activations is 4"),
      ({'activation_kind': 'float'}, "activation_kind is 'float': unknown number format"),
      ({'activation_kind': 'full_int'}, "activation_kind is 'full_int', which is for dynamic activations; .* 'uint'"),
      ({'activation_group_size': 8}, 'activation_group_size is 8, which is for dynamic activations'),
      ({'activation_per_tensor': True}, 'activation_per_tensor is True, which is for dynamic activations'),
      *(({'activation_mode': 'dynamic', key: True}, f'{key} is True, which is for static activations; dynamic ones')
        for key in ('align_zero', 'symmetric_ranges')))
  def test_what_would_do_nothing_is_refused(self, changes, message):
    config = _config('rtn_w4a4')
    config.update(changes)
    with self.assertRaisesRegex(errors.UserError, f'^config.{message}'):
      quantize_config.check(config)
    config.update(activations=16, activation_kind='uint')
    quantize_config.check(config)

  @parameterized.parameters(*_RUN)
  def test_runs(self, style, name, *argument):
    params, architecture = networks.params(style), networks.config(style)
    config = _config(name, *argument)
    for key in ('group_size', 'activation_group_size'):
      config[key] = 8 if config[key] else None
    result = _run(config, style, [networks.tokens(6)])
    validate.validate(result.params, architecture)
    for path in trees.linears(params):
      kernel = trees.get(result.params, path)['kernel']
      self.assertEqual(isinstance(kernel, qtensor.QTensor), path.startswith('layers/'), path)
    self.assertEqual(bool(trees.inputs(result.params)), config.activations < 16)
    logits = networks.evaluator(architecture, jit=networks.quick_jit)(result.params, networks.tokens(2, seed=3))
    self.assertTrue(jnp.isfinite(logits).all())

  @parameterized.parameters(('rtn_w4a4', {'activations': 8}), ('gptq_w4a16_g128', {'weight_kind': 'int'}))
  def test_scales_in_two_levels(self, name, changes):
    config = _config(name)
    config.update(group_size=8, two_level=True, **changes)
    config.gptq.static_groups = True
    validation.check(config, settings.quantize())
    result = _run(config, 'llama', [networks.tokens(6)])
    for path in trees.linears(result.params):
      if path.startswith('layers/'):
        self.assertIsNotNone(two_level.levels(trees.get(result.params, path)['kernel'].scale), path)

  @parameterized.parameters(('dint', 'dint4'), ('dint/4', 'dint4/4'), ('dint/8', 'dint4/8'), ('uint', 'uint4'))
  def test_kinds_of_weights_are_formats_of_their_bits(self, kind, name):
    config = _config('dint_w4a16_g128')
    config.weight_kind = kind
    self.assertEqual(quantize_config.recipe(config, None).weight.format.name, name)
    config.weight_kind = f'{kind}/3'
    with self.assertRaisesRegex(errors.UserError, 'config.weight_kind and config.weights: unknown number format'):
      quantize_config.recipe(config, None)

  def test_slac_runs_on_windows_as_long_as_it_is_told(self):
    for length in (64, 128, 512, 2048):
      config = _config('slac_w4a8', str(length))
      self.assertEqual((config.calibration_length, config.calibration_windows * length), (length, 128 * 2048))
    config = _config('slac_w4a8', '8')
    config.calibration_windows = 12
    windows = _windows(config)
    self.assertEqual([batch.shape for batch in windows], [(12, 8)])
    result = _run(config, 'opt', windows)
    found = {method: [entry[method]['tokens'] for entry in result.decisions.values() if method in entry]
             for method in ('clip_search', 'gptq')}
    self.assertEqual(found, {'clip_search': 4 * [12 * 8], 'gptq': 6 * [12 * 8]})

  @parameterized.parameters(*_NAMES)
  def test_any_method_is_calibrated_on_windows_of_the_length_that_is_asked_for(self, name):
    config = _config(name)
    config.update(calibration_windows=20, calibration_length=6)
    asked = np.concatenate(_windows(config))
    config.calibration_length = None
    self.assertEqual((asked.shape, np.concatenate(_windows(config)).shape), ((20, 6), (20, 16)))
    np.testing.assert_array_equal(np.diff(asked) % 32, 1)  # each is a run of the text

  @parameterized.parameters(*(setting for setting in _SETTINGS if setting[0].startswith(('aqas', 'awq', 'slac'))))
  def test_queries_and_keys_are_left_out_of_the_clip_search(self, *setting):
    """As the code of AWQ, which AQAS follows, leaves them out: their errors meet in a product."""
    linears = [f'layers/0/{name}' for name in (*(f'attention/{n}' for n in 'qkvo'), 'mlp/gate', 'mlp/up', 'mlp/down')]
    clipped = trees.matching(_config(*setting).clip_pattern, linears)
    self.assertEqual(clipped, tuple(linears[2:]))

  @parameterized.parameters(
      ('w6a6', (), 'opt', ['attention/input', 'mlp/input']),
      ('w4a4', ('opt',), 'opt', ['attention/input', 'mlp/input']),
      ('w4a4', (), 'llama', ['attention/input', 'mlp/input', 'mlp/down/input']),
      ('w6a6', ('llama',), 'llama', ['attention/input', 'mlp/input', 'mlp/down/input']))
  def test_outlier_suppression_folds_where_it_was_published_to(self, name, argument, style, want):
    config = _config(f'outlier_suppression_{name}', *argument)
    sites = staging.model_sites(networks.config(style))
    (pattern, _), = quantize_config.recipe(config, config.activation_mode).folds(sites)[0].rules
    claimed = trees.matching(pattern, [site.name for site in sites])
    self.assertEqual(claimed, tuple(f'layers/0/{site}' for site in want))

  @parameterized.parameters(*(name for name in _NAMES if name.startswith('aqas')))
  def test_aqas_fuses_the_norms_of_opt_and_no_others(self, name):
    self.assertEqual(_config(name, 'opt').methods, ('norm_fusion', *_config(name, 'llama').methods))
    self.assertNotIn('norm_fusion', _config(name).methods)

  @parameterized.parameters(('w6a6', 'opt', 'static'), ('w6a6', 'llama', 'dynamic'), ('w4a4', 'llama', 'dynamic'))
  def test_outlier_suppression_has_the_ranges_that_were_published(self, name, family, mode):
    self.assertEqual(_config(f'outlier_suppression_{name}', family).activation_mode, mode)

  @parameterized.parameters(
      ('outlier_suppression_w6a6', 'gemma'), ('outlier_suppression_w4a4', 'gemma,512'), ('aqas_w4a8', 'gemma'))
  def test_another_family_is_refused(self, name, argument):
    with self.assertRaisesRegex(errors.UserError, "^no family 'gemma', only (opt, llama|llama, opt)$"):
      _config(name, argument)

  @parameterized.parameters(('awq_w3a16_g128', 'llama'), ('awq_w4a16_g128', 'opt'))
  def test_the_clip_search_of_awq_leaves_queries_and_keys_alone(self, name, style):
    params, architecture = networks.params(style), networks.config(style)
    config = _config(name)
    config.update(group_size=8, weight_pattern=r'layers/.*/(q|k|v|down)')
    steps = quantize_config.recipe(config, None).steps(staging.model_sites(architecture))
    awq, clipped = (driver.run(params, staging.staged(architecture), steps[:count], [networks.tokens(6)])
                    for count in (1, 2))
    changed = [path for path in trees.linears(params) if not jnp.array_equal(
        trees.get(clipped.params, path)['kernel'], trees.get(awq.params, path)['kernel'])]
    self.assertCountEqual(changed, ['layers/0/attention/v', 'layers/0/mlp/down'])
    self.assertCountEqual([path for path, entry in clipped.decisions.items() if 'clip_search' in entry], changed)


if __name__ == '__main__':
  absltest.main()
