"""What the rule chooses fits, and is what was measured to be fast."""

import dataclasses
import itertools

from absl.testing import absltest
from absl.testing import parameterized

import kernels
from kernels import problems
from kernels import rule
from kernels.mosaic import configs
from launch.benchmarks import kernel_cases

_TOKENS = 1, 17, 33, 64, 65, 1000, 5000
_GROUPS = None, 128, 64, 32


class RuleTest(parameterized.TestCase):

  @parameterized.product(
      size=[(4096, 4096), (4096, 14336), (128, 128), (32000, 11008), (14336, 4096), (6144, 11136), (5120, 13824)],
      case=[*itertools.product(_TOKENS, kernel_cases.BITS, _GROUPS, [False]),
            *itertools.product(_TOKENS, [kernels.Layout.INT4], _GROUPS[1:], [True]),
            # XLA multiplies plain activations of more tokens.
            *itertools.product([n for n in _TOKENS if n <= 128], [kernels.Layout.INT4_WIDE], _GROUPS, [False])])
  def test_rule_fits_the_machine(self, size, case):
    tokens, layout, group, two_level = case
    problem = problems.Problem(tokens, *size, layout, group, two_level=two_level)
    config = rule.configuration(problem)
    self.assertIsNone(problems.misfit(problem, config))
    self.assertEqual(configs.parse(configs.describe(config)), config)

  @parameterized.parameters(
      (1, (4096, 4096), dict(fold=2, tile_k=512, stages=4, warpgroups=1, copying=False)),
      (1, (4096, 11_008), dict(fold=2, tile_k=512, copying=True)),
      (16, (22_016, 4096), dict(fold=1, shared=True, copying=False)),
      (16, (14_336, 4096), dict(tile_m=16, tile_n=64, tile_k=512, stages=3, warpgroups=1, copying=False)),
      (24, (4096, 14_336), dict(tile_m=24, tile_k=512, stages=2, split=2, copying=False)),
      (32, (4096, 4096), dict(tile_m=32, tile_k=512, fold=2, warpgroups=1)),
      (32, (4096, 4096), dict(tile_m=32, tile_k=512, fold=2), kernels.Layout.DINT4),
      (32, (4096, 4096), dict(tile_m=32, tile_k=512, split=2), kernels.Layout.INT4, 128),
      (32, (4096, 14_336), dict(tile_m=32, tile_k=512, split=2, copying=True), kernels.Layout.DINT4),
      (32, (4096, 4096), dict(tile_m=16, split=1, fold=1), kernels.Layout.ROWS),
      (40, (4096, 14_336), dict(tile_m=48, tile_k=256, stages=4, split=2, copying=False)),
      (64, (4096, 14_336), dict(tile_m=64, tile_k=256, stages=4, warpgroups=2, split=2, copying=False)),
      (64, (4096, 14_336), dict(tile_m=64, tile_k=256, stages=3, split=2), kernels.Layout.INT4, 128),
      (64, (4096, 14_336), dict(tile_m=64, tile_k=512, stages=2, split=2), kernels.Layout.INT4, 128, True),
      (64, (4096, 4096), dict(tile_m=32, tile_k=256, stages=3, warpgroups=4, split=1, fold=1, copying=False)),
      (64, (4096, 4096), dict(tile_m=64, split=2, copying=True), kernels.Layout.DINT4),
      (64, (2048, 8192), dict(tile_m=32, split=1, fold=2)),
      (40, (14_336, 4096), dict(tile_m=48, tile_k=512, stages=2, warpgroups=1, copying=False)),
      (40, (4096, 14_336), dict(tile_m=48, split=2), kernels.Layout.DINT4),
      (64, (14_336, 4096), dict(tile_n=64, tile_m=64, tile_k=512, stages=3)),
      (64, (14_336, 4096), dict(tile_n=64, tile_m=64, tile_k=512, stages=3), kernels.Layout.DINT4),
      (64, (14_336, 4096), dict(tile_k=256, split=1, copying=False), kernels.Layout.INT4_WIDE),
      (64, (22_016, 4096), dict(tile_k=256, split=1, copying=False)),
      (1, (5120, 13_824), dict(tile_k=512, stages=3, warpgroups=2, split=1, copying=False)),
      (16, (5120, 13_824), dict(tile_k=512, stages=3, warpgroups=2, split=1, copying=True), kernels.Layout.DINT4),
      (16, (5120, 13_824), dict(tile_k=512, stages=2, warpgroups=3, split=1, copying=False), kernels.Layout.INT4_WIDE),
      (16, (6144, 4096), dict(tile_k=512, stages=3, warpgroups=2, copying=False), kernels.Layout.INT4, 64),
      (32, (6144, 4096), dict(tile_k=512, stages=2, warpgroups=2, copying=True), kernels.Layout.INT4, 64),
      (40, (5120, 13_824), dict(tile_k=256, stages=3, warpgroups=3, split=1, copying=False)),
      (64, (5120, 13_824), dict(tile_k=512, stages=2, warpgroups=2, split=1, copying=False)),
      (64, (8192, 11_008), dict(tile_k=256, stages=4, warpgroups=2, copying=False), kernels.Layout.INT4, 128),
      (64, (5120, 13_824), dict(tile_k=256, stages=3, warpgroups=2, split=1, copying=False), kernels.Layout.ROWS),
      (1, (14_336, 4096), dict(tile_n=128, tile_k=512, stages=3, warpgroups=1)),
      (16, (14_336, 4096), dict(tile_n=128, tile_k=512, stages=2, warpgroups=2), kernels.Layout.DINT4),
      (16, (14_336, 4096), dict(tile_n=64, copying=False), kernels.Layout.ROWS),
      (16, (4096, 14_336), dict(fold=2, tile_k=512, stages=2), kernels.Layout.DINT4),
      (16, (4096, 14_336), dict(fold=1, split=2, tile_k=512, stages=2), kernels.Layout.DINT4, 128),
      (16, (4096, 14_336), dict(fold=2, tile_k=512, stages=2, warpgroups=2), kernels.Layout.INT4_WIDE),
      (8, (4096, 14_336), dict(fold=2, tile_k=512, stages=2), kernels.Layout.INT4_WIDE, 128),
      (16, (4096, 14_336), dict(fold=1, split=2, tile_k=512, stages=2), kernels.Layout.INT4_WIDE, 128),
      (16, (4096, 14_336), dict(fold=2, tile_k=512, stages=2), kernels.Layout.INT4, 128),
      (16, (4096, 14_336), dict(fold=2, tile_k=512, stages=2), kernels.Layout.INT4, 128, True),
      (64, (4096, 14_336), dict(tile_m=32), kernels.Layout.ROWS),
      (64, (4096, 14_336), dict(tile_m=64, split=2), kernels.Layout.DINT4),
      (64, (4096, 14_336), dict(tile_m=64, split=2), kernels.Layout.INT4_WIDE),
      (64, (4096, 4096), dict(tile_m=32, split=1), kernels.Layout.INT4_WIDE),
      (80, (14_336, 4096), dict(tile_m=80, tile_k=256, stages=5, warpgroups=2)),
      (80, (4096, 14_336), dict(tile_m=48, tile_k=512, stages=5, warpgroups=1)),
      (128, (14_336, 4096), dict(tile_m=128, tile_k=256, stages=4, warpgroups=2)),
      (128, (4096, 4096), dict(tile_m=64, tile_k=512, stages=4, warpgroups=1)),
      (128, (4096, 14_336), dict(tile_m=64, tile_k=512, stages=4, warpgroups=1), kernels.Layout.INT4, 128),
      (192, (4096, 14_336), dict(tile_m=96, tile_k=256, stages=6, warpgroups=1)),
      (192, (4096, 14_336), dict(tile_m=48, tile_k=512, stages=3, warpgroups=2), kernels.Layout.INT4, 128),
      (192, (14_336, 4096), dict(tile_m=192, tile_k=256, stages=3, warpgroups=2)),
      (192, (14_336, 4096), dict(tile_m=96, tile_k=256, stages=4, warpgroups=2), kernels.Layout.INT4, 128),
      (256, (4096, 14_336), dict(tile_m=128, tile_k=256, stages=5, warpgroups=1)),
      (256, (4096, 14_336), dict(tile_m=128, tile_k=256, stages=5, warpgroups=1), kernels.Layout.DINT4),
      (256, (4096, 14_336), dict(tile_m=128, tile_k=256, stages=4, warpgroups=1), kernels.Layout.ROWS),
      (256, (4096, 14_336), dict(tile_m=64, tile_k=512, stages=3, warpgroups=2), kernels.Layout.INT4, 128),
      (384, (12_288, 4096), dict(tile_m=96, tile_k=256, stages=4, warpgroups=2)),
      (8192, (4096, 4096), dict(tile_m=112, tile_k=256, stages=3, warpgroups=2), kernels.Layout.INT4, 64),
      (256, (14_336, 4096), dict(tile_m=256, tile_k=128, stages=4, warpgroups=2)))
  def test_the_rule_is_what_was_measured(
      self, tokens, size, want, layout=kernels.Layout.INT4, group=None, two_level=False):
    problem = problems.Problem(tokens, *size, layout, group, two_level=two_level)
    config = dataclasses.asdict(rule.configuration(problem))
    self.assertEqual({name: config[name] for name in want}, want)


if __name__ == '__main__':
  absltest.main()
