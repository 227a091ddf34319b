"""Which configuration is chosen for a problem, and what of a configuration does not fit one."""

import dataclasses
import itertools
import json
import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax

import kernels
from kernels import dispatch
from kernels import problems
from kernels import rule
from kernels import tuning
from kernels.mosaic import configs
from kernels.mosaic import tiles
from launch.benchmarks import kernel_cases
from tests import lowering


class TuningTest(parameterized.TestCase):

  @parameterized.parameters(1, 2, 3, 4)
  def test_a_block_never_waits_for_registers_that_it_did_not_start_with(self, warpgroups):
    started = 65_536 // (128 * (warpgroups + 1)) // 8 * 8
    more = tiles.registers(warpgroups)
    self.assertLessEqual(warpgroups * more + tiles.COPYING, (warpgroups + 1) * started)
    self.assertGreaterEqual(more, started)

  def test_measured_configurations_stand_before_the_rule(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    problem = problems.Problem(32, 4096, 4096, kernels.Layout.INT4)
    config = configs.Decode(tile_m=32, stages=1)
    entry = {'problem': {**problem._asdict(), 'layout': 'int4'}, 'config': configs.describe(config)}
    (folder / 'nvidia_h200.json').write_text(json.dumps({'entries': [entry]}), encoding='utf-8')
    with mock.patch.object(tuning, 'DATA', folder), mock.patch.object(tuning, 'measured', tuning.measured.__wrapped__):
      for tokens, four_bits, found in ((25, False, True), (32, True, True), (24, False, False), (33, False, False)):
        asked = problem._replace(tokens=tokens, four_bits=four_bits)
        self.assertEqual(tuning.choose(asked, 'NVIDIA H200'), config if found else rule.configuration(asked))
      self.assertEqual(tuning.choose(problem, 'NVIDIA H100'), rule.configuration(problem))

  def test_measured_configurations_fit_and_lower(self):
    devices = [json.loads(path.read_text(encoding='utf-8'))['device'] for path in tuning.DATA.glob('*.json')]
    self.assertIn('NVIDIA H200', devices)
    for problem, config in itertools.chain.from_iterable(tuning.measured(device).items() for device in devices):
      self.assertEqual((tuning.key(problem), problems.misfit(problem, config)), (problem, None))
      case, asked = kernel_cases.of_problem(problem), []
      with tuning.forced(lambda question, config=config, asked=asked: (asked.append(question), config)[1]):
        text = jax.jit(case.call).trace(case.operands).lower(lowering_platforms=('cuda',)).as_text()
      self.assertIn('mosaic_gpu', text)
      self.assertEqual(list(map(tuning.key, asked)), [problem])

  _PROBLEM = problems.Problem(256, 384, 384, kernels.Layout.INT4)
  _FITTING = configs.Prefill(tile_m=64, stages=2)

  @parameterized.parameters(
      (_PROBLEM, configs.Prefill(tile_n=128, tile_m=64, stages=2), '1 x 2 tiles of 128 outputs do not divide 384'),
      (_PROBLEM, configs.Prefill(tile_m=64, stages=2, cluster=2), '2 x 2 tiles of 64 outputs do not divide 384'),
      (_PROBLEM, configs.Prefill(tile_n=96, tile_m=64, warpgroups=1), '1 x 1 tiles of 96 outputs'),
      (_PROBLEM, configs.Prefill(tile_m=512), 'no tile has 512 tokens'),
      (_PROBLEM, configs.Decode(tile_m=12, tile_k=128), 'no tile has 12 tokens'),
      (_PROBLEM, configs.Decode(tile_m=40, tile_k=128), 'no tile has 40 tokens'),
      (_PROBLEM, configs.Decode(tile_m=80, tile_k=128), 'no tile has 80 tokens'),
      (_PROBLEM, configs.Decode(tile_k=512), 'steps of 512 inputs do not divide 384'),
      (_PROBLEM, configs.Decode(tile_k=0), '64 inputs do not divide a step of 0'),
      (_PROBLEM, configs.Decode(tile_k=32), '64 inputs do not divide a step'),
      (_PROBLEM, configs.Decode(tile_k=128, fold=2), 'steps of 256 inputs do not divide 384'),
      (_PROBLEM._replace(inputs=2688, group=128), configs.Decode(tile_k=256), 'steps of 256 inputs do not divide 2688'),
      (_PROBLEM._replace(inputs=2688), configs.Prefill(tile_k=256, stages=2), 'steps of 256 inputs do not divide 2688'),
      (_PROBLEM, configs.Decode(tile_k=128, fold=3), 'or 64 of two, not 64 of 3'),
      (_PROBLEM, configs.Decode(tile_k=128, copying=False), 'no registers to take'),
      (_PROBLEM, configs.Decode(tile_k=64, fold=2, split=2), 'not to both'),
      (_PROBLEM, configs.Decode(tile_m=64, tile_k=64, fold=2), 'and not 64 tokens by int4'),
      (_PROBLEM._replace(layout=kernels.Layout.ROWS), configs.Decode(tile_k=128, tile_n=128),
       'and not 16 tokens by rows'),
      (_PROBLEM._replace(group=128), configs.Decode(tile_k=64), '128 inputs do not divide a step of 64'),
      (_PROBLEM, dataclasses.replace(_FITTING, float8=True), 'only groups of 4-bit codes by 4-bit codes'),
      (_PROBLEM._replace(group=128), dataclasses.replace(_FITTING, float8=True), 'only groups of 4-bit codes'),
      (_PROBLEM._replace(layout=kernels.Layout.INT4_WIDE), _FITTING, 'plain activations have no kernel'),
      (_PROBLEM, configs.Prefill(tile_m=256, stages=16), '[0-9]+ bytes do not fit the 230400 of shared memory'))
  def test_what_does_not_fit_is_not_chosen(self, problem, config, reason):
    self.assertRegex(problems.misfit(problem, config), reason)
    with tuning.forced(lambda _: config), self.assertRaisesRegex(NotImplementedError, reason):
      tuning.choose(problem, 'cpu')
    dispatch.say.cache_clear()
    with mock.patch.object(tuning, 'measured', lambda device: {tuning.key(problem): config}):
      with self.assertLogs('kernels', 'WARNING') as logs:
        self.assertEqual(tuning.choose(problem, 'cpu'), rule.configuration(problem))
    self.assertLen(logs.records, 1)
    self.assertRegex(logs.records[0].getMessage(), f'passed over: .*{reason}')

  def test_a_forced_configuration_that_does_not_fit_is_refused_before_it_is_lowered(self):
    with (tuning.forced(lambda _: configs.Prefill(tile_n=128, tile_m=64, stages=2)),
          self.assertRaisesRegex(NotImplementedError, 'tiles of 128 outputs do not divide 384')):
      lowering.product(kernel_cases.product(256, 384, 384, kernels.Layout.INT4))

  @parameterized.parameters(kernels.Layout.INT4, kernels.Layout.INT4_WIDE)
  def test_measurements_count_that_are_of_this_device(self, layout):
    with mock.patch.object(tuning, 'measured', return_value={}) as measured:
      if layout is kernels.Layout.INT4:
        lowering.product(kernel_cases.product(8, 256, 256, layout))
      else:
        weight_only_case = next(case for case in kernel_cases.every() if case.name.startswith('W4A16'))
        jax.jit(weight_only_case.call).trace(weight_only_case.operands)
    measured.assert_called_once_with(jax.local_devices()[0].device_kind)

  def test_a_rule_that_does_not_fit_is_no_choice(self):
    with (mock.patch.object(configs, 'SHARED_MEMORY', 1000),
          self.assertRaisesRegex(NotImplementedError, 'fit')):
      tuning.choose(problems.Problem(5000, 4096, 4096, kernels.Layout.INT4), 'cpu')


if __name__ == '__main__':
  absltest.main()
