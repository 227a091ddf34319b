"""Matmul of integer codes with exact accumulation and one float32 epilogue.

Values are affine in their codes: x = x_scale * c + x_offset and w = w_scale * d + w_offset, with c int8 and d int8,
or int16 where the values of a format, as multiples of one scale, need more than 8 bits. The sum over a group of K
inputs is then

  x_scale w_scale sum(c d)  +  x_offset w_scale sum(d)  +  w_offset x_scale sum(c)  +  K x_offset w_offset,

where the three sums are integers. Both implementations compute the same integers and share the epilogue, hence agree
bit for bit:

  xla        int8 dot_general with int32 accumulation, two of them for int16
  simulated  float32 dot_general of the codes, in runs short enough that every partial sum stays below 2^24
"""

import jax
import jax.numpy as jnp

IMPLEMENTATIONS = ('simulated', 'xla')

_EXACT_FLOAT32 = 2**24
_LARGEST_INT32 = 2**31 - 1
_LARGEST = float(jnp.finfo(jnp.float32).max)


def quantized_matmul(
    x_codes, w_codes, x_scale, w_scale, *, x_offset=None, w_offset=None, bias=None, x_bits=8,
    w_bits=8, implementation='xla', out_dtype=jnp.float32,
):  # pyformat: disable
  """y[..., N] = sum over K of (x_scale * x_codes + x_offset) * (w_scale * w_codes + w_offset), + bias.

  Args:
    x_codes: int8 [..., K].
    w_codes: int8 or int16 [K, N].
    x_scale: float32, scalar or [..., X], X groups along K.
    w_scale: float32 [W, N] or [W, 1], W groups along K; X and W divide K and one of them the other.
    x_offset, w_offset: like the scale beside them, or None for zero.
    bias: [N], added in float32, or None.
    x_bits, w_bits: bits of the codes, which bound their magnitude by 2^(bits-1); w_bits is at most 15.
    implementation: one of `IMPLEMENTATIONS`.
    out_dtype: dtype of the result; everything before is int32 and float32.

  Returns:
    [..., N] of `out_dtype`.

  Raises:
    ValueError: wrong dtypes or shapes, an unknown implementation, or groups so long that sums may exceed int32.
  """
  _check(x_codes, w_codes, x_scale, w_scale, x_offset, w_offset, bias, implementation)
  length = x_codes.shape[-1]
  x_groups = 1 if x_scale.ndim == 0 else x_scale.shape[-1]
  groups = max(x_groups, w_scale.shape[0])
  if length // groups > (most := _LARGEST_INT32 >> (x_bits + w_bits - 2)):
    raise ValueError(f'sums over groups of {length // groups} inputs may exceed int32; with codes of {x_bits} and '
                     f'{w_bits} bits a group has at most {most}')
  accumulate = _accumulate_int8 if implementation == 'xla' else _accumulate_float(x_bits, w_bits)

  def group_sum(index):
    """Float32 [..., N]: the sum over one group's inputs."""
    size = length // groups
    c = jax.lax.dynamic_slice_in_dim(x_codes, index * size, size, -1)
    d = jax.lax.dynamic_slice_in_dim(w_codes, index * size, size, 0)
    of_x = lambda a: a if a is None or a.ndim == 0 else _pick(a, index * x_groups // groups, -1)
    of_w = lambda a: None if a is None else _pick(a, index * w_scale.shape[0] // groups, 0)
    return _epilogue(accumulate(c, d), c, d, of_x(x_scale), of_w(w_scale), of_x(x_offset), of_w(w_offset))

  total = group_sum(0)
  if groups > 1:
    total = jax.lax.fori_loop(1, groups, lambda i, y: y + group_sum(i), total)
  if bias is not None:
    total += bias.astype(jnp.float32)
  return total.astype(out_dtype)


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
    for start in range(0, c.shape[-1], run):
      left = c[..., start : start + run].astype(jnp.float32)
      right = d[start : start + run].astype(jnp.float32)
      part = jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST).astype(jnp.int32)
      total = part if total is None else total + part
    return total

  return accumulate


def _check(x_codes, w_codes, x_scale, w_scale, x_offset, w_offset, bias, implementation):
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(f'unknown implementation {implementation!r}; there are {", ".join(IMPLEMENTATIONS)}')
  if x_codes.dtype != jnp.int8 or w_codes.dtype not in (jnp.int8, jnp.int16):
    raise ValueError(f'codes must be int8, or int16 those of w, not {x_codes.dtype} and {w_codes.dtype}')
  if w_codes.ndim != 2 or x_codes.shape[-1] != w_codes.shape[0]:
    raise ValueError(f'cannot contract codes of shape {x_codes.shape} with {w_codes.shape}')
  if w_scale.ndim != 2 or w_scale.shape[1] not in (1, w_codes.shape[1]):
    raise ValueError(f'w_scale of shape {w_scale.shape} does not fit codes of shape {w_codes.shape}')
  if x_scale.ndim and (x_scale.ndim != x_codes.ndim or any(
      have not in (1, want) for have, want in zip(x_scale.shape[:-1], x_codes.shape[:-1]))):
    raise ValueError(f'x_scale of shape {x_scale.shape} does not fit codes of shape {x_codes.shape}')
  for name, scale, offset in (('x', x_scale, x_offset), ('w', w_scale, w_offset)):
    if offset is not None and offset.shape != scale.shape:
      raise ValueError(f'{name}_offset of shape {offset.shape} does not fit {name}_scale of shape {scale.shape}')
    if {scale.dtype, scale.dtype if offset is None else offset.dtype} != {jnp.dtype(jnp.float32)}:
      raise ValueError(f'{name}_scale and {name}_offset must be float32')
  if bias is not None and bias.shape != w_codes.shape[1:]:
    raise ValueError(f'bias of shape {bias.shape} does not fit {w_codes.shape[1]} outputs')
  x_groups = 1 if x_scale.ndim == 0 else x_scale.shape[-1]
  few, many = sorted((x_groups, w_scale.shape[0]))
  if many % few or w_codes.shape[0] % many:
    raise ValueError(f'{x_groups} and {w_scale.shape[0]} groups do not share {w_codes.shape[0]} inputs evenly')
