"""The kernels for Hopper compute what every implementation computes: `pytest -n 0 -m gpu`."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

import kernels
from kernels import problems
from kernels import rule
from kernels import tuning
from kernels.mosaic import configs
from tests import gpus
from tests import integer_weight_cases
from tests import product_cases

_DECODE = [
    configs.Decode(tile_m=tile_m, tile_k=tile_k, stages=2, warpgroups=warpgroups, split=split)
    for tile_m, tile_k, warpgroups, split in (
        (8, 256, 4, 1), (8, 128, 4, 4), (16, 256, 2, 2), (32, 256, 1, 8), (48, 128, 2, 2), (64, 128, 2, 1),
        (64, 256, 1, 2))
] + [
    configs.Decode(tile_m, tile_k, 2, warpgroups, fold=fold, shared=shared)
    for tile_m, tile_k, warpgroups, fold, shared in (
        (8, 256, 1, 1, True), (16, 128, 4, 2, True), (8, 128, 1, 2, False), (16, 256, 2, 2, True),
        (24, 256, 2, 2, True), (32, 256, 2, 2, True), (48, 256, 2, 1, True))
] + [
    configs.Decode(tile_m, tile_k, 2, warpgroups, split, fold=fold, shared=True, copying=False)
    for tile_m, tile_k, warpgroups, split, fold in (
        (8, 256, 1, 1, 1), (16, 128, 2, 1, 2), (48, 256, 3, 1, 1), (64, 128, 4, 1, 1), (64, 256, 2, 2, 1))
] + [
    configs.Decode(tile_m, tile_k, 2, warpgroups, split, shared=True, tile_n=128)
    for tile_m, tile_k, warpgroups, split in ((8, 256, 1, 1), (16, 128, 2, 2), (16, 256, 3, 1))]
_PREFILL = [
    configs.Prefill(tile_n=tile_n, tile_m=tile_m, tile_k=tile_k, stages=stages, warpgroups=warpgroups, panel=panel)
    for tile_n, tile_m, tile_k, stages, warpgroups, panel in (
        (64, 256, 128, 3, 2, 8), (64, 192, 128, 4, 2, 1), (64, 64, 256, 2, 2, 4), (128, 128, 128, 3, 2, 2),
        (64, 128, 128, 4, 3, 8), (64, 48, 256, 3, 2, 8), (64, 80, 256, 5, 1, 8), (64, 64, 512, 4, 1, 8),
        (64, 112, 128, 3, 2, 8), (64, 208, 128, 5, 2, 8))
] + [configs.Prefill(cluster=2, stages=3), configs.Prefill(128, 128, cluster=2, panel=2)]


@gpus.needed
class MosaicTest(product_cases.TilingCases, integer_weight_cases.IntegerWeightCases):
  implementation = 'mosaic_gpu'

  def _fitting(self, config, layout, shape, two_level_group=None):
    """The tiling with as many of its stages as fit; skips the test where the shape is not one of its."""
    tokens, inputs, outputs = shape
    problem = problems.Problem(
        tokens, outputs, inputs, layout, two_level_group, two_level=two_level_group is not None)
    if isinstance(config, configs.Prefill):
      config = config.deepest(*problem.weights, most=config.stages)
    if problems.misfit(problem, config):
      self.skipTest('the dispatcher does not choose this tiling here')
    return config

  @parameterized.product(
      config=_DECODE + _PREFILL, layout=[kernels.Layout.INT4, kernels.Layout.ROWS],
      shape=[(70, 1024, 384), (515, 2304, 768)])
  def test_every_tiling_sums_exactly(self, config, layout, shape):
    bits = (4, 4) if layout is kernels.Layout.INT4 else (4, 8)
    config, (tokens, inputs, outputs) = self._fitting(config, layout, shape), shape
    rng = np.random.default_rng(0)
    x, w = product_cases.codes(rng, bits[0], tokens, inputs), product_cases.codes(rng, bits[1], inputs, outputs)
    unit = dict(x_scale=np.ones((tokens, 1), np.float32), w_scale=np.ones((1, outputs), np.float32))
    with tuning.forced(lambda _: config):
      got = self.run_problem(dict(x_codes=x, w_codes=w, **unit), bits, layout=layout)
    np.testing.assert_array_equal(got, x.astype(np.int64) @ w)

  @parameterized.product(
      float8=[False, True], offsets=['none', 'both, per token'], shape=[(5, 2048, 128), (64, 1024, 192),
                                                                        (300, 2048, 256)])
  def test_both_bodies_of_groups_agree(self, float8, offsets, shape):
    # The sums of a group of 4-bit codes are exact in both, so that only the order of float32 additions differs.
    arguments = product_cases.problem(groups=(1, shape[1] // 128), offsets=offsets, shape=shape)
    with tuning.forced(lambda problem: dataclasses.replace(rule.configuration(problem), float8=float8)):
      self.check(arguments, (4, 4), layout=kernels.Layout.INT4)

  @parameterized.product(config=_DECODE + _PREFILL, special=[1 / 2, 1 / 4], shape=[(70, 1024, 384), (515, 2304, 768)])
  def test_every_tiling_sums_dint_codes_exactly(self, config, special, shape):
    layout = kernels.Layout.DINT4
    config = self._fitting(config, layout, shape)
    coded, plain = integer_weight_cases.dint_problem(special=special, shape=shape)
    unit = dict(x_scale=np.float32(1), w_scale=np.ones((1, shape[-1]), np.float32))
    with tuning.forced(lambda _: config):
      got = self.run_problem(coded | unit, (8, 7), layout=layout, w_special=special)
    np.testing.assert_array_equal(got, plain['x_codes'].astype(np.int64) @ plain['w_codes'])

  @parameterized.product(config=_DECODE + _PREFILL, group=[32, 128], shape=[(70, 1024, 384), (515, 2304, 768)])
  def test_every_tiling_sums_two_level_weights_exactly(self, config, group, shape):
    layout, groups = kernels.Layout.INT4, shape[1] // group
    config = self._fitting(config, layout, shape, group)
    coded, plain = integer_weight_cases.two_level_problem(groups=groups, shape=shape)
    unit = dict(x_scale=np.float32(1), w_scale=np.ones((1, shape[-1]), np.float32))
    with tuning.forced(lambda _: config):
      got = self.run_problem(coded | unit, (8, 4), layout=layout)
    want = plain['x_codes'].astype(np.int64) @ plain['w_codes']
    np.testing.assert_array_equal(got, want.astype(np.float32))

  @parameterized.product(
      config=[config for config in _DECODE if config.split > 1], groups=[1, 8], offsets=['none', 'both, per token'])
  def test_blocks_of_a_cluster_scale_their_own_tokens(self, config, groups, offsets):
    layout, shape = kernels.Layout.INT4, (70, 1024, 384)
    config = self._fitting(config, layout, shape)
    arguments = product_cases.problem(bits=(8, 4), groups=(1, groups), offsets=offsets, bias=True, shape=shape)
    with tuning.forced(lambda _: config):
      self.check(arguments, (8, 4), layout=layout, out_dtype=jnp.bfloat16)

  @parameterized.product(
      config=[configs.Decode(48, 128, 3, 2), configs.Prefill(64, 48, 128, 3), configs.Prefill(64, 112, 128, 3)],
      groups=[1, 8], tokens=[40, 130])
  def test_numbers_of_tokens_land_where_copies_may(self, config, groups, tokens):
    """Rows of which are no multiple of 128 bytes."""
    arguments = product_cases.problem(
        bits=(8, 4), groups=(1, groups), offsets='both, per token', bias=True, shape=(tokens, 1024, 384))
    with tuning.forced(lambda _: config):
      self.check(arguments, (8, 4), layout=kernels.Layout.INT4)

  @parameterized.parameters((1, 512, 2), (16, 256, 2), (40, 512, 1))
  def test_the_last_step_may_go_beyond_the_inputs(self, tokens, tile_k, fold):
    config = configs.Decode(8 if tokens == 1 else 16, tile_k, 2, 2, fold=fold, shared=True)
    with tuning.forced(lambda _: config):
      self.check_sums((8, 4), (tokens, 11_008, 128))

  def test_a_race_would_change_the_sums(self):
    arguments = product_cases.problem(shape=(64, 4096, 4096), bits=(8, 4))
    first, *others = (self.run_problem(arguments, (8, 4), out_dtype=jnp.bfloat16) for _ in range(8))
    for other in others:
      np.testing.assert_array_equal(other, first)


if __name__ == '__main__':
  absltest.main()
