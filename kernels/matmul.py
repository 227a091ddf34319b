"""Matmul of integer codes with exact accumulation and one float32 epilogue: the public function and its choice.

Values are affine in their codes: x = x_scale * c + x_offset and w = w_scale * d + w_offset, with c int8 and d int8,
or int16 where the values of a format, as multiples of one scale, need more than 8 bits. The sum over a group of K
inputs is then

  x_scale w_scale sum(c d)  +  x_offset w_scale sum(d)  +  w_offset x_scale sum(c)  +  K x_offset w_offset,

where the three sums are integers. Codes of weights may stand for integers d that depend on a zero point or on a
multiplier of their group (kernels.integer_weights). Every implementation computes the same integers; `xla` and
`simulated` agree bit for bit in the result as well, the others to the rounding of the epilogue.
"""

import math
import numbers

import jax.numpy as jnp

from kernels import behind as behind_lib
from kernels import checks
from kernels import dint
from kernels import dispatch
from kernels import integer_weights
from kernels import layouts
from kernels import xla
from kernels.mosaic import matmul as mosaic

# Those of every device first.
IMPLEMENTATIONS = ('simulated', 'xla')
DEVICE_IMPLEMENTATIONS = ('mosaic_gpu',)

_FUNCTIONS = {'simulated': xla.simulated, 'xla': xla.xla, 'mosaic_gpu': mosaic.matmul}


def quantized_matmul(
    x_codes, w_codes, x_scale, w_scale, *, x_offset=None, w_offset=None, bias=None, x_bits=8, w_bits=8,
    layout=layouts.Layout.CODES, row_sums=None, column_sums=None, w_zero_point=None, w_special=1 / 2,
    w_multiplier=None, implementation=None, out_dtype=jnp.float32, behind=behind_lib.Behind(),
):  # pyformat: disable
  """y[..., N] = sum over K of (x_scale * x_codes + x_offset) * (w_scale * w_codes + w_offset), + bias.

  Args:
    x_codes: int8 [..., K].
    w_codes: int8 or int16 [K, N], or int8 in another `layout` (kernels.layouts).
    x_scale: float32, scalar or [..., X], X groups along K.
    w_scale: float32 [W, N] or, for plain codes, [W, 1], W groups along K; X and W divide K and one of them the other.
    x_offset, w_offset: like the scale beside them, or None for zero.
    bias: floating [N], added in float32, or None.
    x_bits, w_bits: bits of the codes, which bound their magnitude by 2^(bits-1): 1 to 8, or 9 to 15 those of int16. In
      the layout DINT4 those of the integers that the codes stand for: 6, 7 or 8 with a `w_special` of 1/2, 1/4 or 1/8,
      or one less where the codes are those of 3 bits.
    layout: how `w_codes` lie in memory.
    row_sums: int32 [..., S], sums of `x_codes` over S equal runs of inputs, a whole number of them in each group of
      weights, if whoever quantized them has them already (`quantize_activations` with a `group_size`).
    column_sums: float32 [N], the sums of the weights' values (layouts.column_sums), if they are at hand.
    w_zero_point: int32 like `w_scale`, from 0 to 13, in the layout DINT4 and in no other; then there is no `w_offset`,
      and `w_scale` is that of the integers: `w_special` steps.
    w_special: the magnitude of the special codes' values in steps, one of dint.SPECIALS; a Python number.
    w_multiplier: int32 [W, N] from 1 to 15, W groups along K, or None: values are w_scale * w_multiplier * w_codes. It
      takes `w_bits` of at most 4, the layouts CODES and INT4, a `w_scale` of one group and no `w_offset`.
    implementation: one of `IMPLEMENTATIONS` or `DEVICE_IMPLEMENTATIONS`; None: the fastest that takes the problem on
      this device, as the log of `kernels` says once for each kind of problem.
    out_dtype: dtype of the result; everything before is int32 and float32.
    behind: what becomes of the result in this dtype: a gate of its outputs, codes on a static range.

  Returns:
    [..., N] of `out_dtype`; behind a gate [..., N / 2]; codes int8.

  Raises:
    ValueError: wrong dtypes, shapes or widths of codes, operands of another layout, an unknown implementation or gate,
      a result that is not floating, known zero points or multipliers beyond their range, or groups so long that sums
      may exceed int32.
    NotImplementedError: the implementation that was asked for does not take this problem, or not on this device.
  """
  checks.arrays(
      'x_offset', 'w_offset', 'bias', 'row_sums', 'column_sums', 'w_zero_point', 'w_multiplier', x_codes=x_codes,
      w_codes=w_codes, x_scale=x_scale, w_scale=w_scale, x_offset=x_offset, w_offset=w_offset, bias=bias,
      row_sums=row_sums, column_sums=column_sums, w_zero_point=w_zero_point, w_multiplier=w_multiplier)
  layouts.check(layout)
  checks.implementation(implementation, _FUNCTIONS)
  out_dtype = checks.out_dtype(out_dtype)
  _check_bits(w_codes, x_bits, w_bits, layout, w_special)
  _check(x_codes, w_codes, x_scale, w_scale, x_offset, w_offset, bias, layout, row_sums, column_sums, w_zero_point,
         w_special, w_multiplier, w_bits)
  behind_lib.check(behind, layouts.outputs(w_codes, w_scale, layout))
  w_bits = integer_weights.bits(w_bits, w_multiplier)
  length = x_codes.shape[-1]
  groups = max(1 if x_scale.ndim == 0 else x_scale.shape[-1], w_scale.shape[0])
  if length // groups > (most := checks.LARGEST_INT32 >> (x_bits + w_bits - 2)):
    raise ValueError(f'sums over groups of {length // groups} inputs may exceed int32; with integers of {x_bits} and '
                     f'{w_bits} bits a group has at most {most}')
  arguments = dict(
      x_codes=x_codes, w_codes=w_codes, x_scale=x_scale, w_scale=w_scale, x_offset=x_offset, w_offset=w_offset,
      bias=bias, x_bits=x_bits, w_bits=w_bits, layout=layout, row_sums=row_sums, column_sums=column_sums,
      w_zero_point=w_zero_point, w_special=w_special, w_multiplier=w_multiplier, out_dtype=out_dtype, behind=behind)
  return dispatch.call(_FUNCTIONS, implementation, arguments, _described(arguments))


def _described(arguments) -> str:
  """The static part of a problem, in words."""
  *batch, inputs = arguments['x_codes'].shape
  outputs = layouts.outputs(arguments['w_codes'], arguments['w_scale'], arguments['layout'])
  multiplier = arguments['w_multiplier']
  return (f'{math.prod(batch)} x {inputs} codes of {arguments["x_bits"]} bits by {inputs} x {outputs} of '
          f'{arguments["w_bits"]} bits in {len(arguments["w_scale"])} groups, laid out as {arguments["layout"].value}'
          + ('' if multiplier is None else f', with {len(multiplier)} groups of multipliers'))


def _check_bits(w_codes, x_bits, w_bits, layout, w_special):
  """Raises `ValueError` for widths that codes of the dtype or the layout cannot have."""
  checks.bits('x_bits', x_bits, 8)
  if isinstance(w_special, bool) or not isinstance(w_special, numbers.Real):
    raise ValueError(f'w_special must be a Python number, 1/2, 1/4 or 1/8 of a step, not {w_special!r}')
  if layout is layouts.Layout.DINT4 and w_special in dint.SPECIALS:
    # The least are those of 3-bit codes, at most 5 steps from their zero point.
    checks.bits('w_bits', w_bits, 8, least=dint.per_step(w_special).bit_length() + 3)
  elif w_codes.dtype == jnp.int16:
    checks.bits('w_bits', w_bits, 15, least=9)
  else:
    checks.bits('w_bits', w_bits, 8)


def _check(
    x_codes, w_codes, x_scale, w_scale, x_offset, w_offset, bias, layout, row_sums, column_sums, w_zero_point,
    w_special, w_multiplier, w_bits,
):  # pyformat: disable
  """Raises `ValueError` for operands that do not fit each other."""
  if x_codes.dtype != jnp.int8 or w_codes.dtype not in (jnp.int8, jnp.int16):
    raise ValueError(f'codes must be int8, or int16 those of w, not {x_codes.dtype} and {w_codes.dtype}')
  if not x_codes.ndim or not w_codes.ndim:
    raise ValueError(f'cannot contract codes of shape {x_codes.shape} with {w_codes.shape}')
  inputs = x_codes.shape[-1]
  if w_scale.ndim != 2:
    raise ValueError(f'w_scale of shape {w_scale.shape} does not fit codes of shape {w_codes.shape}')
  plain = layout is layouts.Layout.CODES
  outputs = layouts.outputs(w_codes, w_scale, layout)
  if w_codes.shape != layouts.shape(layout, inputs, outputs) or (not plain and w_codes.dtype != jnp.int8):
    raise ValueError(f'cannot contract codes of shape {x_codes.shape} with {w_codes.shape}'
                     + ('' if plain else f' in the layout {layout.value}, for {outputs} outputs'))
  if w_scale.shape[1] not in ((1, outputs) if plain else (outputs,)):
    raise ValueError(f'w_scale of shape {w_scale.shape} does not fit codes of shape {w_codes.shape}')
  integer_weights.check(
      w_scale, w_offset, inputs, outputs, layout, w_bits, w_zero_point, w_special, w_multiplier)
  if x_scale.ndim and (x_scale.ndim != x_codes.ndim or any(
      have not in (1, want) for have, want in zip(x_scale.shape[:-1], x_codes.shape[:-1]))):
    raise ValueError(f'x_scale of shape {x_scale.shape} does not fit codes of shape {x_codes.shape}')
  for name, scale, offset in (('x', x_scale, x_offset), ('w', w_scale, w_offset)):
    if offset is not None and offset.shape != scale.shape:
      raise ValueError(f'{name}_offset of shape {offset.shape} does not fit {name}_scale of shape {scale.shape}')
    if {scale.dtype, scale.dtype if offset is None else offset.dtype} != {jnp.dtype(jnp.float32)}:
      raise ValueError(f'{name}_scale and {name}_offset must be float32')
  checks.bias(bias, outputs)
  x_groups = 1 if x_scale.ndim == 0 else x_scale.shape[-1]
  few, many = sorted((x_groups, w_scale.shape[0]))
  if not few or many % few or inputs % many:
    raise ValueError(f'{x_groups} and {w_scale.shape[0]} groups do not share {inputs} inputs evenly')
  if column_sums is not None and (column_sums.shape != (outputs,) or column_sums.dtype != jnp.float32):
    raise ValueError(f'column_sums must be float32 [{outputs}], not {column_sums.dtype} {list(column_sums.shape)}')
  if row_sums is not None and (
      row_sums.shape[:-1] != x_codes.shape[:-1] or row_sums.dtype != jnp.int32 or not row_sums.ndim
      or not row_sums.shape[-1] or row_sums.shape[-1] % w_scale.shape[0] or inputs % row_sums.shape[-1]):
    raise ValueError(f'row_sums must be int32, of {list(x_codes.shape[:-1])} tokens and runs that divide groups of '
                     f'{inputs // w_scale.shape[0]} of {inputs} inputs, not {row_sums.dtype} {list(row_sums.shape)}')
