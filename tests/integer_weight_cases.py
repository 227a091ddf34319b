"""Problems with codes that stand for integers by others of their group, and the cases of their products."""

import itertools

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import kernels
from kernels import integer_weights
from kernels import layouts
from tests import product_cases

_SHAPES = [(1, 128, 64), (2, 3, 256, 130), (33, 130, 7), (64, 896, 128), (300, 640, 192)]
_KINDS = ['dint', 'two-level']
_TWO_LEVEL = [kernels.Layout.CODES, kernels.Layout.INT4]


def dint_problem(*, special=1 / 2, groups=1, shape=(5, 256, 64), seed=0, **options):
  """(arguments with codes of dINT4 and zero points, the same problem with the integers that they stand for)."""
  plain = product_cases.problem(bits=(8, 8), groups=(1, groups), shape=shape, seed=seed, **options)
  inputs, outputs = plain['w_codes'].shape
  rng = np.random.default_rng(seed)
  zero_point = rng.integers(0, 14, (groups, outputs), np.int32)
  zero_point.flat[:: max(2, outputs // 3)], zero_point.flat[1 :: max(2, outputs // 3)] = 0, 13
  codes = rng.integers(0, 16, (inputs, outputs), np.int8)
  codes[:16] = np.arange(16)[:, None]  # every code of every output
  steps = (codes - np.repeat(zero_point, inputs // groups, axis=0)) * round(1 / special)
  integers = np.select([codes == 14, codes == 15], [1, -1], steps).astype(np.int8)
  return {**plain, 'w_codes': codes, 'w_zero_point': zero_point}, {**plain, 'w_codes': integers}


def two_level_problem(*, groups=1, shape=(5, 256, 64), seed=0, **options):
  """(arguments with codes of 4 bits and multipliers, the same problem with the integers that they stand for)."""
  plain = product_cases.problem(bits=(8, 4), shape=shape, seed=seed, **options)
  inputs, outputs = plain['w_codes'].shape
  # Neighbors differ, along outputs and along groups, and the largest one meets every code.
  multiplier = (7 * np.arange(groups)[:, None] + np.arange(outputs)).astype(np.int32) % integer_weights.MOST + 1
  codes = plain['w_codes']
  codes[:16] = np.arange(-8, 8)[:, None]
  integers = (codes * np.repeat(multiplier, inputs // groups, axis=0)).astype(np.int8)
  return {**plain, 'w_multiplier': multiplier}, {**plain, 'w_codes': integers}


def _problem(kind: str, **options):
  """(layout, bits, arguments, the same problem with integers) of a kind of weights."""
  if kind == 'dint':
    return kernels.Layout.DINT4, (8, 6), *dint_problem(**options)
  return kernels.Layout.INT4, (8, 4), *two_level_problem(**options)


class IntegerWeightCases(product_cases.ProductCases):
  """What holds for every implementation, products of plain codes included; a subclass names one."""

  def check_integers(self, coded, plain, bits, **static):
    """Sums with unit scales are exact."""
    unit = dict(x_scale=np.float32(1), w_scale=np.ones_like(coded['w_scale']))
    want = plain['x_codes'].astype(np.int64) @ plain['w_codes']
    self.assertLess(np.abs(want).max(), product_cases.EXACT)
    np.testing.assert_array_equal(self.run_problem(coded | unit, bits, **static), want)

  @parameterized.product(special=[1 / 2, 1 / 4], shape=_SHAPES)
  def test_sums_of_dint_codes_are_exact(self, special, shape):
    coded, plain = dint_problem(special=special, shape=shape)
    self.check_integers(coded, plain, (8, 7), layout=kernels.Layout.DINT4, w_special=special)

  @parameterized.parameters(
      *((group, layout, shape) for group, layout, shape in itertools.product((None, 32, 64, 128), _TWO_LEVEL, _SHAPES)
        if group is None or shape[-2] % 128 == 0))
  def test_sums_of_two_level_weights_are_exact(self, group, layout, shape):
    coded, plain = two_level_problem(groups=shape[-2] // group if group else 1, shape=shape)
    self.check_integers(coded, plain, (8, 4), layout=layout)

  @parameterized.parameters(-8, 7)
  def test_the_largest_sums_of_two_level_weights_are_exact(self, code):
    coded, _ = two_level_problem(groups=4, shape=(2, 512, 64))
    coded |= dict(x_codes=np.full((2, 512), -128, np.int8), w_codes=np.full((512, 64), code, np.int8),
                  w_multiplier=np.full((4, 64), integer_weights.MOST, np.int32),
                  x_scale=np.float32(1), w_scale=np.ones((1, 64), np.float32))
    got = self.run_problem(coded, (8, 4), layout=kernels.Layout.INT4)
    np.testing.assert_array_equal(got, np.full((2, 64), 512 * -128 * code * integer_weights.MOST, np.float32))

  @parameterized.product(
      kind=_KINDS, group=[32, 64, 128, 256, None], offsets=['none', 'x, scalar', 'x, per token'],
      shape=[(3, 512, 96), (130, 768, 192)])
  def test_groups_and_offsets_of_integers(self, kind, group, offsets, shape):
    groups = 1 if group is None else shape[-2] // group
    layout, bits, coded, plain = _problem(kind, groups=groups, offsets=offsets, bias=True, shape=shape)
    dtype = jnp.bfloat16 if group == 64 else jnp.float32
    self.compare(self.run_problem(coded, bits, layout=layout, out_dtype=dtype), plain, dtype)

  @parameterized.parameters('none', 'x, per token')
  def test_sums_at_hand_change_nothing_for_two_level_weights(self, offsets):
    coded, plain = two_level_problem(groups=4, offsets=offsets, shape=(5, 512, 64))
    want = self.run_problem(coded, (8, 4), layout=kernels.Layout.INT4)
    coded['row_sums'] = coded['x_codes'].reshape(5, 4, -1).sum(axis=-1, dtype=np.int32)
    coded['column_sums'] = np.asarray(layouts.column_sums(jnp.asarray(plain['w_codes']), jnp.asarray(plain['w_scale'])))
    got = self.run_problem(coded, (8, 4), layout=kernels.Layout.INT4)
    np.testing.assert_allclose(got, want, rtol=1e-6)

  @parameterized.product(kind=_KINDS, tokens=[4, 70])
  def test_zero_scales_leave_the_bias_of_integers(self, kind, tokens):
    layout, bits, coded, _ = _problem(kind, bias=True, shape=(tokens, 256, 64))
    coded['w_scale'][:, ::2] = 0
    got = self.run_problem(coded, bits, layout=layout)
    np.testing.assert_array_equal(got[:, ::2], np.broadcast_to(coded['bias'], got.shape)[:, ::2])
    self.assertGreater(np.abs(got - coded['bias'])[:, 1::2].mean(), 1)

  @parameterized.product(kind=_KINDS, mapped=['activations', 'weights too'])
  def test_under_vmap_codes_keep_the_integers_of_their_group(self, kind, mapped):
    laid_out, bits, coded, plain = zip(*(_problem(kind, groups=2, shape=(5, 256, 64), seed=seed) for seed in range(2)))
    if kind == 'two-level':
      coded[1]['w_multiplier'] = integer_weights.MOST + 1 - coded[1]['w_multiplier']
      plain[1]['w_codes'] = coded[1]['w_codes'] * np.repeat(coded[1]['w_multiplier'], 128, axis=0).astype(np.int8)
    shared = lambda name: mapped == 'activations' and name[0] == 'w'
    stacked = {name: a if shared(name) else np.stack([each[name] for each in coded]) for name, a in coded[0].items()}
    stacked['w_codes'] = layouts.prepack(jnp.asarray(stacked['w_codes']), laid_out[0])
    call = lambda a: kernels.quantized_matmul(
        **a, w_bits=bits[0][1], layout=laid_out[0], implementation=self.implementation)
    got = jax.jit(jax.vmap(call, in_axes=({name: None if shared(name) else 0 for name in stacked},)))(stacked)
    for each, result in zip(plain, got):
      weights = {name: a for name, a in plain[0].items() if shared(name)}
      self.compare(np.asarray(result), each | weights, jnp.float32)
