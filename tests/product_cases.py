"""Problems for quantized matmuls, their reference, and the cases that every implementation inherits."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import kernels
from kernels import layouts
from tests import behind_cases
from tests import poisoning

# offset of x, offset of w
OFFSETS = {'none': (None, False), 'x, scalar': ('scalar', False), 'x, per token': ('token', False),
           'w': (None, True), 'both, scalar': ('scalar', True), 'both, per token': ('token', True)}
# Sums of this many products of int8 stay exact in the float32 that they are returned in.
EXACT = 2**24
# What float32 arithmetic may lose of the sum of the magnitudes of its terms: eight roundings of each.
LOST = 8 * 2**-24
_BITS = [(4, 4), (8, 4), (8, 8)]
_WIDE = [kernels.Layout.CODES, kernels.Layout.INT4_WIDE]
_DTYPES = [jnp.bfloat16, jnp.float16, jnp.float32]


def codes(rng, bits, *shape):
  """Random codes of `bits` that hold both extremes."""
  result = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape)
  result.flat[0], result.flat[-1] = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
  return result.astype(np.int8 if bits <= 8 else np.int16)


def problem(*, bits=(4, 4), groups=(1, 1), offsets='none', shape=(3, 5, 24, 7), bias=False, scales='token', seed=0):
  """Arguments of `quantized_matmul` as NumPy arrays; `shape` is batch, tokens, inputs, outputs."""
  rng = np.random.default_rng(seed)
  *batch, inputs, outputs = shape
  x_offset, w_offset = OFFSETS[offsets]
  positive = lambda *s: rng.uniform(0.01, 1, s).astype(np.float32)
  x_shape = () if 'scalar' in (scales, x_offset) else (*batch, groups[0])
  arguments = dict(
      x_codes=codes(rng, bits[0], *batch, inputs), w_codes=codes(rng, bits[1], inputs, outputs),
      x_scale=np.asarray(positive(*x_shape)), w_scale=positive(groups[1], outputs))
  if x_offset:
    arguments['x_offset'] = np.asarray(rng.normal(size=x_shape), np.float32)
  if w_offset:
    arguments['w_offset'] = rng.normal(size=arguments['w_scale'].shape).astype(np.float32)
  if bias:
    arguments['bias'] = rng.normal(size=outputs).astype(np.float32)
  return arguments


def reference(arguments):
  """(float64 product of the values, the sum of the magnitudes of what is multiplied and added), both [..., N]."""
  def values(of, scale, offset, axis):
    spread = lambda a: a if a.ndim == 0 else np.repeat(a, of.shape[axis] // a.shape[axis], axis).astype(np.float64)
    parts = of * spread(scale), spread(np.float32(0) if offset is None else offset)
    return sum(parts), sum(map(np.abs, parts))

  x, x_size = values(arguments['x_codes'], arguments['x_scale'], arguments.get('x_offset'), -1)
  w, w_size = values(arguments['w_codes'], arguments['w_scale'], arguments.get('w_offset'), 0)
  bias = arguments.get('bias', np.float32(0))
  return x @ w + bias, x_size @ w_size + np.abs(bias)


class ProductCases(parameterized.TestCase):
  """What holds for every implementation; a subclass names one."""

  implementation: str

  def run_problem(self, arguments, bits, *, layout=kernels.Layout.CODES, out_dtype=jnp.float32, **static):
    """The result, as a NumPy array."""
    arguments = jax.tree.map(jnp.asarray, arguments)
    arguments['w_codes'] = layouts.prepack(arguments['w_codes'], layout)
    call = jax.jit(lambda a: kernels.quantized_matmul(
        **a, x_bits=bits[0], w_bits=bits[1], layout=layout, implementation=self.implementation, out_dtype=out_dtype,
        **static))
    return np.asarray(poisoning.poisoned(call, arguments))

  def check(self, arguments, bits, *, layout=kernels.Layout.CODES, out_dtype=jnp.float32):
    """The result is the float64 product to one rounding of its dtype and a few of float32 arithmetic."""
    if out_dtype == jnp.float16:  # whose range is small
      arguments = {**arguments, 'x_scale': arguments['x_scale'] * np.float32(2**-10)}
    self.compare(self.run_problem(arguments, bits, layout=layout, out_dtype=out_dtype), arguments, out_dtype)

  def compare(self, got, arguments, out_dtype):
    """As `check`, for a result that is there."""
    want, size = reference(arguments)
    self.assertEqual((got.shape, got.dtype), (want.shape, jnp.dtype(out_dtype)))
    kind = jnp.finfo(out_dtype)
    rounding = np.maximum(float(kind.eps) / 2 * np.abs(want), float(kind.smallest_subnormal) / 2)
    excess = np.abs(got.astype(np.float64) - want) - rounding - LOST * size
    self.assertLessEqual(excess.max(), 0)

  def check_sums(self, bits, shape):
    """Sums of products with unit scales are exact, of plain codes and in the layout for their width."""
    rng = np.random.default_rng(0)
    *batch, inputs, outputs = shape
    x, w = codes(rng, bits[0], *batch, inputs), codes(rng, bits[1], inputs, outputs)
    x[..., 0, :], w[:, 0] = -(2 ** (bits[0] - 1)), -(2 ** (bits[1] - 1))
    layout = kernels.Layout.INT4 if bits[1] == 4 else kernels.Layout.ROWS
    unit = dict(x_scale=np.float32(1), w_scale=np.ones((1, outputs), np.float32))
    want = x.astype(np.int64) @ w
    self.assertLess(np.abs(want).max(), EXACT)
    for layout in (kernels.Layout.CODES, layout):
      got = self.run_problem(dict(x_codes=x, w_codes=w, **unit), bits, layout=layout)
      np.testing.assert_array_equal(got, want)

  def check_behind(self, bits, gate, name, out_dtype, shape, groups=1):
    """A gate of the outputs, and codes on a static range, are those of the result that is there without."""
    arguments = problem(bits=bits, offsets='w', bias=True, groups=(1, groups), shape=shape)
    layout = kernels.Layout.INT4 if bits[1] == 4 else kernels.Layout.ROWS
    arguments['x_scale'] = arguments['x_scale'] / np.float32(2 ** sum(bits))
    run = lambda **static: self.run_problem(arguments, bits, layout=layout, out_dtype=out_dtype, **static)
    plain = run()
    asked = behind_cases.behind(gate, name, size=float(np.abs(plain.astype(np.float32)).mean()))
    got = run(behind=asked)
    self.assertEqual(got.shape, (*shape[:-2], asked.outputs(shape[-1])))
    self.assertLessEqual(behind_cases.excess(got, plain, asked), 0)

  def check_offsets(self, offsets, bias, shape):
    """The terms that offsets and biases add."""
    self.check(problem(offsets=offsets, bias=bias, shape=shape), (4, 4))

  def check_scales(self, bits, scales, out_dtype, shape):
    """Scales of the tensor and of tokens, and the rounding to a dtype."""
    layout = kernels.Layout.INT4 if bits[1] == 4 else kernels.Layout.ROWS
    self.check(problem(bits=bits, scales=scales, shape=shape), bits, layout=layout, out_dtype=out_dtype)

  def check_groups(self, bits, group, offsets, shape):
    """Groups of `group` inputs that share a scale of the weights."""
    arguments = problem(bits=bits, groups=(1, shape[-2] // group), offsets=offsets, bias=True, shape=shape)
    layout = kernels.Layout.INT4 if group == 128 else kernels.Layout.CODES
    self.check(arguments, bits, layout=layout, out_dtype=jnp.bfloat16 if group == 64 else jnp.float32)

  @parameterized.product(bits=_BITS, shape=[(1, 128, 64), (2, 3, 256, 130), (33, 130, 7)])
  def test_sums_of_products_are_exact(self, bits, shape):
    self.check_sums(bits, shape)

  @parameterized.product(offsets=list(OFFSETS), bias=[False, True])
  def test_offsets(self, offsets, bias):
    self.check_offsets(offsets, bias, (5, 256, 130))

  @parameterized.product(bits=[(4, 4), (8, 8)], scales=['scalar', 'token'], out_dtype=_DTYPES)
  def test_scales_and_dtypes(self, bits, scales, out_dtype):
    self.check_scales(bits, scales, out_dtype, (2, 9, 384, 96))

  @parameterized.product(bits=[(4, 4), (8, 4)], group=[32, 64, 128, 256], offsets=['none', 'w', 'both, scalar'])
  def test_groups(self, bits, group, offsets):
    self.check_groups(bits, group, offsets, (3, 512, 96))

  @parameterized.product(behind=behind_cases.BEHIND, bits=[(4, 4), (8, 8)], out_dtype=_DTYPES)
  def test_what_happens_behind(self, behind, bits, out_dtype):
    self.check_behind(bits, *behind, out_dtype, (2, 9, 384, 96))

  @parameterized.parameters(4, 70)
  def test_zero_scales_leave_the_bias(self, tokens):
    arguments = problem(bias=True, shape=(tokens, 256, 64))
    arguments['w_scale'][:, ::2] = 0
    arguments['x_scale'][::2] = 0
    got = self.run_problem(arguments, (4, 4))
    bias = np.broadcast_to(arguments['bias'], got.shape)
    np.testing.assert_array_equal(got[::2], bias[::2])
    np.testing.assert_array_equal(got[:, ::2], bias[:, ::2])
    self.assertGreater(np.abs(got - bias)[1::2, 1::2].mean(), 1)

  @parameterized.parameters('activations', 'weights too')
  def test_under_vmap_it_is_a_product_for_each(self, mapped):
    problems = [problem(offsets='both, per token', shape=(5, 256, 64), seed=seed) for seed in range(3)]
    axes = dict.fromkeys(problems[0], 0)
    if mapped == 'activations':
      for name in ('w_codes', 'w_scale', 'w_offset'):
        axes[name] = None
        for each in problems:
          each[name] = problems[0][name]
    stacked = {name: problems[0][name] if axis is None else jnp.stack([each[name] for each in problems])
               for name, axis in axes.items()}
    call = lambda a: kernels.quantized_matmul(**a, x_bits=4, w_bits=4, implementation=self.implementation)
    got = jax.jit(jax.vmap(call, in_axes=(axes,)))(stacked)
    for each, result in zip(problems, got):
      want, size = reference(each)
      self.assertLessEqual((np.abs(result - want) - LOST * size).max(), 0)


class TilingCases(ProductCases):
  """The same over shapes of several tiles, for implementations that cut a product into tiles themselves."""

  @parameterized.product(bits=_BITS, shape=[
      (16, 512, 192), (24, 512, 192), (40, 896, 128), (64, 896, 128), (200, 384, 256), (300, 640, 100)])
  def test_sums_over_tiles_are_exact(self, bits, shape):
    self.check_sums(bits, shape)

  @parameterized.product(offsets=list(OFFSETS), bias=[False, True])
  def test_offsets_over_tiles(self, offsets, bias):
    self.check_offsets(offsets, bias, (130, 256, 64))

  @parameterized.product(bits=[(4, 4), (8, 8)], scales=['scalar', 'token'], out_dtype=_DTYPES)
  def test_scales_and_dtypes_over_tiles(self, bits, scales, out_dtype):
    self.check_scales(bits, scales, out_dtype, (257, 384, 192))

  @parameterized.product(bits=[(4, 4), (8, 4)], group=[32, 64, 128, 256], offsets=['none', 'w', 'both, scalar'])
  def test_groups_over_tiles(self, bits, group, offsets):
    self.check_groups(bits, group, offsets, (130, 768, 192))

  @parameterized.product(behind=behind_cases.BEHIND, tokens=[1, 24, 64, 130], outputs=[4096, 14_336])
  def test_what_happens_behind_tiles(self, behind, tokens, outputs):
    self.check_behind((8, 4), *behind, jnp.bfloat16, (tokens, 512, outputs), groups=4 if outputs == 4096 else 1)

  @parameterized.parameters((1, 1), (1, 4), (2, 2), (2, 4), (2, 16))
  def test_sums_at_hand_change_nothing(self, groups, runs):
    arguments = problem(offsets='both, per token', groups=(1, groups), shape=(5, 512, 64))
    want = self.run_problem(arguments, (4, 4))
    arguments['row_sums'] = arguments['x_codes'].reshape(5, runs, -1).sum(axis=-1, dtype=np.int32)
    arguments['column_sums'] = np.asarray(layouts.column_sums(
        *(jnp.asarray(arguments[name]) for name in ('w_codes', 'w_scale', 'w_offset'))))
    np.testing.assert_allclose(self.run_problem(arguments, (4, 4)), want, rtol=1e-6)


def weight_only_problem(tokens, inputs, outputs, groups, offset, bias):
  """Arguments of `weight_only_matmul` as NumPy arrays, but for the activations: bfloat16 of JAX."""
  name = 'w' if offset else 'none'
  arguments = problem(groups=(1, groups), offsets=name, bias=bias, shape=(tokens, inputs, outputs))
  del arguments['x_codes'], arguments['x_scale']
  arguments['x'] = jax.random.normal(jax.random.key(0), (tokens, inputs), jnp.bfloat16)
  return arguments


class WeightOnlyCases(parameterized.TestCase):
  """What holds for every implementation of products with quantized weights alone; a subclass names one.

  Attributes:
    implementation: its name.
    rounds_groups: whether it rounds the values of weights to bfloat16 where they have scales of groups.
  """

  implementation: str
  rounds_groups = False

  def run_problem(self, arguments, layout, out_dtype, **static):
    """The result, as a NumPy array."""
    packed = arguments | {'w_codes': layouts.prepack(jnp.asarray(arguments['w_codes']), layout)}
    call = jax.jit(lambda a: kernels.weight_only_matmul(
        **a, w_bits=4, layout=layout, implementation=self.implementation, out_dtype=out_dtype, **static))
    return np.asarray(poisoning.poisoned(call, packed))

  def expected(self, arguments):
    """As `reference`, of the weights as they are multiplied."""
    x, weights = np.asarray(arguments['x'], np.float64), {k: v for k, v in arguments.items() if k != 'x'}
    if self.rounds_groups and len(weights['w_scale']) > 1:
      spread = lambda name: np.repeat(weights.get(name, np.float32(0) * weights['w_scale']), 128, axis=0)
      values = jnp.asarray(weights['w_codes'] * spread('w_scale') + spread('w_offset'), jnp.bfloat16)
      weights = {'w_codes': np.asarray(values, np.float64), 'w_scale': np.ones((1, values.shape[1]), np.float32),
                 **({'bias': weights['bias']} if 'bias' in weights else {})}
    return reference({'x_codes': x, 'x_scale': np.float32(1), **weights})

  def check(self, size, grouped, offset, layout):
    """The product is that of the values, to float32 arithmetic."""
    tokens, inputs, outputs = size
    groups = inputs // 128 if grouped and inputs % 128 == 0 else 1
    arguments = weight_only_problem(tokens, inputs, outputs, groups, offset, bias=grouped)
    got, (want, magnitude) = self.run_problem(arguments, layout, jnp.float32), self.expected(arguments)
    # A value that lies between two of bfloat16 may be rounded to either.
    tolerance = 2**-13 if self.rounds_groups and groups > 1 else 2**-16
    self.assertLessEqual((np.abs(got - want) - tolerance * magnitude).max(), 0)

  @parameterized.product(size=[(5, 130, 7), (16, 512, 192)], grouped=[False, True], offset=[False, True], layout=_WIDE)
  def test_products(self, size, grouped, offset, layout):
    self.check(size, grouped, offset, layout)

  @parameterized.product(behind=behind_cases.BEHIND, tokens=[1, 16, 40, 120], grouped=[False, True])
  def test_what_happens_behind(self, behind, tokens, grouped):
    arguments = weight_only_problem(tokens, 512, 256, 4 if grouped else 1, True, bias=True)
    asked = behind_cases.behind(*behind, size=50)
    plain, got = (self.run_problem(arguments, kernels.Layout.INT4_WIDE, jnp.bfloat16, **options)
                  for options in ({}, {'behind': asked}))
    self.assertEqual(got.shape, (tokens, asked.outputs(256)))
    self.assertLessEqual(behind_cases.excess(got, plain, asked), 0)

  @parameterized.product(offset=[False, True], layout=_WIDE)
  def test_the_sum_with_a_bias_is_rounded_once(self, offset, layout):
    arguments = weight_only_problem(16, 256, 128, 1, offset, bias=False)
    product, magnitude = self.expected(arguments)
    # What is left of the first token is less than the rounding of its product.
    arguments['bias'] = np.float32(-product[0])
    want = product + arguments['bias']
    got = self.run_problem(arguments, layout, jnp.bfloat16)
    self.assertLessEqual((np.abs(got.astype(np.float64) - want) - 2**-8 * np.abs(want) - 2**-16 * magnitude).max(), 0)


class WeightOnlyTilingCases(WeightOnlyCases):
  """The same over shapes of several tiles and of one token."""

  @parameterized.product(
      size=[(1, 256, 64), (64, 1024, 130), (100, 384, 128)], grouped=[False, True], offset=[False, True], layout=_WIDE)
  def test_products_over_tiles(self, size, grouped, offset, layout):
    self.check(size, grouped, offset, layout)
