"""Activations to quantize, their values in float64, and the cases that every implementation inherits."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import kernels
from kernels import activations
from tests import behind_cases

# What may be asked for, on 512 features; `gate`, `norm`, `channels` (a shift and a scale of each) and `hadamard` come
# before.
CASES = {
    'plain': {},
    'affine': {'symmetric': False},
    'groups': {'group_size': 64},
    'affine packed groups': {'symmetric': False, 'bits': 4, 'packed': True, 'group_size': 128},
    'packed': {'bits': 4, 'packed': True},
    'three bits': {'bits': 3, 'packed': True, 'symmetric': False, 'group_size': 256},
    'static': {'static': (0.05, None)},
    'static with an offset': {'static': (0.04, 0.7), 'bits': 4, 'packed': True, 'group_size': 128},
    'rms': {'norm': 'rms'},
    'rms affine': {'norm': 'rms', 'symmetric': False, 'bits': 4, 'channels': True},
    'layer': {'norm': 'layer', 'channels': True, 'group_size': 32},
    'layer static': {'norm': 'layer', 'static': (0.03, -0.1)},
    'channels': {'channels': True, 'symmetric': False, 'group_size': 128},
    **{f'hadamard {block}': {'hadamard': block, 'group_size': 128} for block in (2, 8, 64, 128, 256, 512)},
    'gate': {'gate': 'silu', 'symmetric': False, 'bits': 4},
    'gate, all': {'gate': 'silu', 'channels': True, 'hadamard': 64, 'bits': 4, 'packed': True, 'group_size': 128},
    'all': {'norm': 'rms', 'channels': True, 'hadamard': 128, 'bits': 4, 'packed': True, 'group_size': 128},
}


def jitted(function):
  """jax.jit with every rounding to 16 bits that is asked for, as models are evaluated; XLA may leave some out else."""
  return jax.jit(function, compiler_options={'xla_allow_excess_precision': False})


def tokens(*shape, dtype=jnp.bfloat16, seed=0):
  """Tokens of different sizes, one of zeros and one of one sign."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=shape) * 10.0 ** rng.integers(-3, 3, (*shape[:-1], 1))
  x[..., 0, :] = 0
  x[..., -1, :] = np.abs(x[..., -1, :]) + 1
  return jnp.asarray(x, dtype)


def given(case: dict, features: int) -> int:
  """Features of what one of `CASES` is given."""
  return 2 * features if 'gate' in case else features


def arguments(case: dict, features: int, seed: int = 1) -> dict:
  """The keyword arguments of `quantize_activations` for one of `CASES`."""
  options = dict(case)
  norm, channels, block = options.pop('norm', None), options.pop('channels', False), options.pop('hadamard', 1)
  gate = options.pop('gate', None)
  rng = np.random.default_rng(seed)
  vector = lambda present: jnp.asarray(rng.uniform(0.5, 1.5, features), jnp.float32) if present else None
  options['before'] = kernels.Before(
      norm, vector(norm), vector(norm == 'layer'), 1e-5, vector(channels), vector(channels), block, gate)
  if 'static' in options:
    options['static'] = kernels.StaticRange(*(None if v is None else jnp.float32(v) for v in options['static']))
  return options


def values(x, before: kernels.Before):
  """What is quantized, in float64."""
  x = np.asarray(x, np.float64)
  if before.gate:
    gate, x = behind_cases.halves(x)
    x = x * gate / (1 + np.exp(np.minimum(-gate, 700)))
  x = x - (x.mean(-1, keepdims=True) if before.norm == 'layer' else 0)
  if before.norm:
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + before.epsilon)
  of = lambda vector, absent: absent if vector is None else np.asarray(vector, np.float64)
  x = (x * of(before.gain, 1) + of(before.bias, 0) - of(before.shift, 0)) / of(before.scale, 1)
  matrix = np.ones((1, 1))
  while len(matrix) < before.hadamard:
    matrix = np.kron([[1, 1], [1, -1]], matrix)
  blocks = x.reshape(*x.shape[:-1], -1, len(matrix)) @ matrix / np.sqrt(len(matrix))
  return blocks.reshape(x.shape)


def unpacked(result, packed: bool):
  """The codes as int64 [..., K]."""
  if packed:
    result = result._replace(codes=activations.unpack(result.codes))
  return np.asarray(result.codes, np.int64)


class ActivationCases(parameterized.TestCase):
  """What holds for every implementation; a subclass runs one."""

  def quantize(self, x, options) -> activations.QuantizedActivations:
    """The result of the implementation."""
    raise NotImplementedError

  @parameterized.parameters(*CASES)
  def test_values(self, name):
    options, x = arguments(CASES[name], 512), tokens(2, 3, given(CASES[name], 512), dtype=jnp.float32)
    got = self.quantize(x, options)
    want, static, bits = values(x, options['before']), options.get('static'), options.get('bits', 8)
    codes, scale = unpacked(got, options.get('packed', False)), np.asarray(got.scale, np.float64)
    offset = 0 if got.offset is None else np.asarray(got.offset, np.float64)
    least = -(2 ** (bits - 1))
    if static is None:
      np.testing.assert_equal((got.scale.shape, got.offset is None), ((2, 3, 1), options.get('symmetric', True)))
      # No range is wider than its token.
      ends = np.maximum(want.max(-1, keepdims=True), 0), np.minimum(want.min(-1, keepdims=True), 0)
      width = ends[0] - ends[1] if got.offset is not None else 2 * np.maximum(*np.abs(ends))
      levels = 2**bits - (1 if got.offset is not None else 2)
      np.testing.assert_allclose(scale, np.where(width == 0, 1, width / levels), rtol=1e-5)
    else:
      want = np.clip(want, least * scale + offset, (-1 - least) * scale + offset)
    self.assertLessEqual((np.abs(codes * scale + offset - want) / scale).max(), 0.501)
    self.assertBetween(codes.min(), least, 0)
    self.assertBetween(codes.max(), 1, -1 - least)
    groups = 512 // options.get('group_size', 512)
    np.testing.assert_array_equal(got.row_sums, codes.reshape(2, 3, groups, -1).sum(-1))


  @parameterized.parameters(jnp.bfloat16, jnp.float32)
  def test_an_addend(self, dtype):
    options = arguments(CASES['rms'], 512)
    x, addend = (tokens(5, 512, dtype=dtype, seed=seed) for seed in range(2))
    got = self.quantize(x, options | {'addend': addend})
    total = x + addend
    np.testing.assert_array_equal(got.total, total)
    self.assertEqual(got.total.dtype, dtype)
    want = self.quantize(total, options)
    self.assertIsNone(want.total)
    jax.tree.map(np.testing.assert_array_equal, got._replace(total=None), want)


class LikeXlaCases(ActivationCases):
  """What holds for the other implementations beside: the codes are those of `xla`, but for a few on an edge."""

  def compare(self, x, options):
    """Runs both."""
    got = self.quantize(x, options)
    want = jitted(lambda x: kernels.quantize_activations(x, implementation='xla', **options))(x)
    packed = options.get('packed', False)
    # An inverse instead of a division, and sums in another order, move a value by a unit in its last place.
    moved = np.abs(unpacked(got, packed) - unpacked(want, packed))
    self.assertLessEqual(moved.max(), 1)
    self.assertLess(moved.mean(), 0.01)
    # Where that happens before a value is rounded to the activation's dtype, it may be the next one of that dtype.
    before = options['before']
    narrow = before.gate or before.norm or before.scale is not None
    near = {'rtol': float(jnp.finfo(x.dtype).eps) if narrow and x.dtype != jnp.float32 else 1e-5}
    np.testing.assert_allclose(got.scale, want.scale, **near)
    self.assertEqual(got.offset is None, want.offset is None)
    if got.offset is not None:
      np.testing.assert_allclose(got.offset, want.offset, **near)
    sums = unpacked(got, packed).reshape(*want.row_sums.shape, -1).sum(-1)
    np.testing.assert_array_equal(got.row_sums, sums)

  @parameterized.parameters(*((name, jnp.bfloat16) for name in CASES), ('all', jnp.float16), ('plain', jnp.float16))
  def test_codes_of_16_bit_activations(self, name, dtype):
    self.compare(tokens(5, given(CASES[name], 512), dtype=dtype), arguments(CASES[name], 512))
