"""Bits allocated by a configuration: within the budget, by scores of the folded tree, as said and as saved."""

import dataclasses
import importlib
import json
import math
import signal

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from configs.ptq import allocation_gptq_w4a16_g64
from jaxquant import errors
from jaxquant.calibration import driver
from jaxquant.models import staging
from jaxquant.numerics import formats
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.transforms import grids
from launch import calibration
from launch import mixed_precision
from launch import models
from launch import post_training
from launch import quantize_config
from tests import launching
from tests import model_directories
from tests import networks

_BITS = 5.5
_LINEARS = [f'layers/0/{name}' for name in (
    'attention/q', 'attention/k', 'attention/v', 'attention/o', 'mlp/gate', 'mlp/up', 'mlp/down')]
_OPTIONS = dict(group_size=16, calibration_windows=8)


def _flags(*more):
  return ['--config=configs/ptq/allocation_gptq_w4a16_g64.py', f'--model={launching.trained()}', '--variant=baseline',
          *(f'--config.{key}={value}' for key, value in _OPTIONS.items()), f'--config.allocation.bits={_BITS}', *more]


def _decisions(workdir):
  return json.loads((workdir / 'decisions.json').read_text())


class LossTest(parameterized.TestCase):

  @parameterized.parameters('opt', 'bert')
  def test_scores_by_the_loss_that_the_model_was_trained_for(self, style):
    """That of the next token, or of hidden ones; nothing is said of linears outside the pattern."""
    architecture, params = networks.config(style), networks.params(style)
    grid = lambda name: quantizers.WeightQuantizer(formats.parse(name), group_size=8)
    asked = mixed_precision.Budget(6.5, tuple(map(grid, ('int2', 'int4', 'int8'))), 'loss', 'layers/.*')
    found, decisions = asked.allocate(driver.Result(params, {}), architecture, [networks.tokens(3)])
    self.assertCountEqual(decisions, [path for path in trees.linears(params) if path.startswith('layers/')])
    for path, entry in decisions.items():
      two, four, eight = entry['loss_scores']['scores']
      self.assertGreater(two, 5 * four, path)
      self.assertGreater(four, 50 * eight, path)
      self.assertGreater(eight, 0, path)
    self.assertLessEqual(found.bits, 6.5)


class MixedPrecisionTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.straight = launching.folder() / 'mixed'
    cls.flags = _flags("--config.methods=('awq','gptq')", '--config.allocation.score=layer_errors')
    cls.finished = launching.run('quantize', *cls.flags, f'--workdir={cls.straight}',
                                 f'--text={launching.folder() / "validation.txt"}')
    if cls.finished.code:
      raise AssertionError(cls.finished)

  def assert_within_budget(self, workdir):
    """Every linear is saved on the grid that was decided, all together within the budget, and not all on the same."""
    decisions, params = _decisions(workdir), models.find(str(workdir)).load()[0]
    stored, weights, names = 0, 0, set()
    for path in _LINEARS:
      kernel, choice = trees.get(params, path)['kernel'], decisions[path]['allocation']
      names.add(choice['grid'])
      self.assertEqual(choice['grid'], f'{kernel.format.name} g{_OPTIONS["group_size"]}')
      self.assertAlmostEqual(choice['bits'], kernel.bits_per_value, places=9)
      stored += kernel.bits_per_value * math.prod(kernel.shape)
      weights += math.prod(kernel.shape)
    self.assertLessEqual(stored, _BITS * weights)
    self.assertGreater(len(names), 1)

  def test_choices_are_saved_said_and_reported(self):
    self.assert_within_budget(self.straight)
    decisions, report = _decisions(self.straight), (self.straight / 'report.html').read_text()
    for path in _LINEARS:
      self.assertEqual(list(decisions[path]), ['layer_errors', 'allocation', 'gptq'])
      choice = decisions[path]['allocation']
      self.assertRegex(self.finished.output, rf'\n{path} +{choice["grid"]} +{choice["bits"]:.3f}  ')
      self.assertIn(f'>{choice["grid"]}<', report)
    self.assertIn('\nscored layers/0 ', self.finished.output)
    self.assertLess(self.finished.output.index('\n7 linears '), self.finished.output.index('\ncalibrated layers/0 '))
    self.assertIn('Everything of allocation, by path', report)
    self.assertEqual(list(decisions['layers/0/mlp/input']), ['awq'])

  def test_scores_are_those_of_the_folded_tree(self):
    """Rounding the kernels as they are would cost something else: the folds changed them."""
    config = importlib.import_module('configs.ptq.allocation_gptq_w4a16_g64').get_config()
    model = models.find(str(launching.trained()), 'baseline')
    config.update(methods=('awq', 'gptq'), **_OPTIONS)
    config.allocation.score = 'layer_errors'
    asked, stages = quantize_config.budget(config), staging.staged(model.decoder)
    folds = quantize_config.recipe(config, None).folds(staging.model_sites(model.decoder))
    batches = calibration.batches(model.training_tokens(), 8, model.length, seed=0)
    params, _ = model.load()
    measured = lambda steps: driver.run(params, stages, [*steps, *asked.steps()], batches).decisions
    folded, unfolded, found = measured(folds), measured([]), _decisions(self.straight)
    changed = 0
    for path in _LINEARS:
      errors = [np.asarray(made[path]['layer_errors']['errors']) for made in (found, folded, unfolded)]
      np.testing.assert_allclose(errors[0], errors[1], rtol=1e-3, err_msg=path)
      changed += not np.allclose(errors[0], errors[2], rtol=1e-2)
      names = [grids.name(candidate) for candidate in asked.candidates]
      choice = found[path]['allocation']
      self.assertAlmostEqual(choice['score'], errors[0][names.index(choice['grid'])], places=9)
    self.assertGreater(changed, 0)  # at how many sites folding pays depends on the text, which is the interpreter's

  def test_precision_is_the_mean_of_the_codes(self):
    params = models.find(str(self.straight)).load()[0]
    kernels = [trees.get(params, path)['kernel'] for path in _LINEARS]
    mean = np.average([k.format.bits for k in kernels], weights=[math.prod(k.shape) for k in kernels])
    self.assertEqual([entry['weights'] for entry in launching.evaluations(self.straight)], [round(mean, 2)])
    self.assertIn(f'W{round(mean, 2)}A16: perplexity', self.finished.output)

  def test_killed_it_continues_to_the_same_choices_and_codes(self):
    workdir = launching.folder() / self.id()
    launch = launching.Launch('quantize', *self.flags, f'--workdir={workdir}')
    launch.until((workdir / 'blocks' / 'layers.0' / '0').exists)
    launch.send(signal.SIGKILL)
    self.assertEqual(launch.finish().code, -signal.SIGKILL)
    finished = launching.run('quantize', *self.flags, f'--workdir={workdir}')
    self.assertEqual(finished.code, 0, finished)
    self.assertEqual(finished.output.count('\nrestored layers/0 '), 2)
    self.assertNotIn('\ncalibrated layers/0 ', finished.output)
    self.assertEqual(_decisions(workdir), _decisions(self.straight))
    self.assertEqual(launching.checksums(workdir, 0), launching.checksums(self.straight, 0))
    self.assertFalse((workdir / 'blocks').exists())

  @parameterized.parameters(({}, False, 'it lacks a mask'), ({'head': False}, True, 'it lacks a language-model head'))
  def test_by_a_loss_that_the_model_lacks(self, changes, masks, message):
    model = models.find(str(model_directories.write(launching.folder() / self.id(), 'bert')))
    model.masks, model.decoder = masks, dataclasses.replace(model.decoder, **changes)
    config = allocation_gptq_w4a16_g64.get_config()
    config.update(group_size=16)
    config.allocation.bits = 6.5
    with self.assertRaisesRegex(errors.UserError, f"config.allocation.score is 'loss', and .* has none: {message}"):
      post_training.check_fit(config, model)

  def test_by_the_loss_with_nothing_to_fold(self):
    workdir = launching.folder() / self.id()
    flags = _flags("--config.methods=('round_to_nearest',)")
    finished = launching.run('quantize', *flags, f'--workdir={workdir}')
    self.assertEqual(finished.code, 0, finished)
    self.assert_within_budget(workdir)
    for path in _LINEARS:
      entry = _decisions(workdir)[path]
      self.assertEqual(list(entry), ['loss_scores', 'allocation', 'round_to_nearest'])
      self.assertEqual(entry['loss_scores']['scores'], sorted(entry['loss_scores']['scores'], reverse=True))


if __name__ == '__main__':
  absltest.main()
