"""Quantized matmuls in plain XLA: the reference that every other implementation is held to.

Of codes, two products that compute the same integers and share the epilogue, hence agree bit for bit:

  xla        int8 dot_general with int32 accumulation, two of them for int16
  simulated  float32 dot_general of the codes, in runs short enough that every partial sum stays below 2^24

Of activations that are not quantized, `weight_only`. All take every shape, group and offset, on every device, and
differentiate with respect to what is floating.
"""

import jax
import jax.numpy as jnp

from kernels import behind as behind_lib
from kernels import integer_weights
from kernels import layouts

_EXACT_FLOAT32 = 2**24
_LARGEST = float(jnp.finfo(jnp.float32).max)


def xla(x_codes, w_codes, x_scale, w_scale, **options):
  """`matmul.quantized_matmul` through int8 products; the arguments are checked already."""
  return _matmul(_accumulate_int8, x_codes, w_codes, x_scale, w_scale, **options)


def simulated(x_codes, w_codes, x_scale, w_scale, *, x_bits, w_bits, **options):
  """`matmul.quantized_matmul` through float32 products; the arguments are checked already."""
  accumulate = _accumulate_float(x_bits, w_bits)
  return _matmul(accumulate, x_codes, w_codes, x_scale, w_scale, x_bits=x_bits, w_bits=w_bits, **options)


def weight_only(x, w_codes, w_scale, *, w_offset, bias, w_bits, layout, out_dtype, behind):
  """`weight_only.weight_only_matmul` through a product of floats; the arguments are checked already."""
  del w_bits
  inputs, groups = x.shape[-1], len(w_scale)
  w = layouts.unpack(w_codes, layout, (inputs, w_scale.shape[1]))
  # Of float32, a GPU would multiply fewer digits.
  precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
  product = lambda w: jnp.matmul(x, w.astype(x.dtype), precision=precision, preferred_element_type=jnp.float32)
  if groups == 1:
    y = product(w) * w_scale[0]
    if w_offset is not None:
      y += jnp.sum(x, axis=-1, keepdims=True, dtype=jnp.float32) * w_offset[0]
  else:
    wide = lambda v: jnp.repeat(v, inputs // groups, axis=0)
    values = w.astype(jnp.float32) * wide(w_scale)
    y = product(values if w_offset is None else values + wide(w_offset))
  return behind_lib.apply(y if bias is None else y + bias.astype(jnp.float32), behind, out_dtype)


def _matmul(
    accumulate, x_codes, w_codes, x_scale, w_scale, *, x_offset, w_offset, bias, x_bits, w_bits, layout, row_sums,
    column_sums, w_zero_point, w_special, w_multiplier, out_dtype, behind,
):  # pyformat: disable
  """Sums over groups of the scaled accumulators; `row_sums` and `column_sums` are summed again where they matter."""
  del x_bits, w_bits, row_sums, column_sums
  length = x_codes.shape[-1]
  w_codes = integer_weights.integers(
      w_codes, layout, (length, w_scale.shape[1]), w_zero_point, w_special, w_multiplier)
  x_groups = 1 if x_scale.ndim == 0 else x_scale.shape[-1]
  groups = max(x_groups, w_scale.shape[0])

  def group_sum(index):
    """Float32 [..., N]: the sum over one group's inputs."""
    size = length // groups
    c = jax.lax.dynamic_slice_in_dim(x_codes, index * size, size, -1)
    d = jax.lax.dynamic_slice_in_dim(w_codes, index * size, size, 0)
    of_x = lambda a: a if a is None or a.ndim == 0 else _pick(a, index * x_groups // groups, -1)
    of_w = lambda a: None if a is None else _pick(a, index * w_scale.shape[0] // groups, 0)[0]
    return _epilogue(accumulate(c, d), c, d, of_x(x_scale), of_w(w_scale), of_x(x_offset), of_w(w_offset))

  total = group_sum(0)
  if groups > 1:
    total = jax.lax.fori_loop(1, groups, lambda i, y: y + group_sum(i), total)
  if bias is not None:
    total += bias.astype(jnp.float32)
  return behind_lib.apply(total, behind, out_dtype)


def _pick(array, index, axis):
  return jax.lax.dynamic_slice_in_dim(array, index, 1, axis)


def _epilogue(accumulator, x_codes, w_codes, x_scale, w_scale, x_offset, w_offset):
  """Float32 result of one group from its int32 accumulator; the terms of absent offsets are left out."""
  result = accumulator.astype(jnp.float32) * x_scale * w_scale
  if x_offset is not None:
    column_sums = jnp.sum(w_codes, axis=0, dtype=jnp.int32).astype(jnp.float32)
    result += _settled(x_offset * (column_sums * w_scale))
  if w_offset is not None:
    row_sums = jnp.sum(x_codes, axis=-1, keepdims=True, dtype=jnp.int32).astype(jnp.float32)
    result += _settled((row_sums * x_scale) * w_offset)
    if x_offset is not None:
      result += _settled(x_codes.shape[-1] * x_offset * w_offset)
  return result


def _settled(product):
  """The rounded product, hidden from contraction.

  In a * b + c * d a compiler may fuse either product into the addition without rounding it, and picks by what else
  stands in the loop. With one product behind a maximum there is one choice, the same in every implementation.
  """
  return jnp.maximum(product, -_LARGEST)


def _accumulate_int8(c, d):
  """The int32 sums; int16 codes are 128 * high + low, two int8 codes each."""
  if d.dtype == jnp.int16:
    high, low = (d >> 7).astype(jnp.int8), (d & 127).astype(jnp.int8)
    return 128 * _accumulate_int8(c, high) + _accumulate_int8(c, low)
  return jax.lax.dot_general(c, d, (((c.ndim - 1,), (0,)), ((), ())), preferred_element_type=jnp.int32)


def _accumulate_float(x_bits, w_bits):
  """The same integers through float32 products: exact in runs of `run` inputs, which are added as int32."""
  run = _EXACT_FLOAT32 >> (x_bits + w_bits - 2)

  def accumulate(c, d):
    total = None
    for start in range(0, max(1, c.shape[-1]), run):  # once for no inputs at all, whose sum is zero
      left = c[..., start : start + run].astype(jnp.float32)
      right = d[start : start + run].astype(jnp.float32)
      part = jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST).astype(jnp.int32)
      total = part if total is None else total + part
    return total

  return accumulate
