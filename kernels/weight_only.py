"""Matmul of activations that are not quantized with weights that are.

Sums, scales of outputs, offsets and biases are float32 in every implementation, and the result is rounded once. With
one scale an output, the codes themselves are multiplied, which are exact in 16 bits. With groups, `xla` multiplies the
weights' values, rounded to the dtype of the activation, because the sums of every group would cost it a pass over
memory each; `mosaic_gpu` scales the sums of each group instead and rounds no weight.
"""

import math

import jax.numpy as jnp

from kernels import behind as behind_lib
from kernels import checks
from kernels import dispatch
from kernels import layouts
from kernels import xla
from kernels.mosaic import weight_only as mosaic

_DTYPES = (jnp.bfloat16, jnp.float16, jnp.float32)


def weight_only_matmul(
    x, w_codes, w_scale, *, w_offset=None, bias=None, w_bits, layout=layouts.Layout.CODES, implementation=None,
    out_dtype=None, behind=behind_lib.Behind(),
):  # pyformat: disable
  """y[..., N] = sum over K of x * (w_scale * w_codes + w_offset), + bias.

  Args:
    x: bfloat16, float16 or float32 [..., K].
    w_codes: int8 [K, N], or in another `layout` (kernels.layouts) but DINT4.
    w_scale: float32 [W, N] or, for plain codes, [W, 1], W groups along K; W divides K.
    w_offset: like `w_scale`, or None for zero.
    bias: floating [N], added in float32, or None.
    w_bits: bits of the codes, 1 to 8, which bound their magnitude by 2^(bits-1); at most 4 in a layout of 4 bits.
    layout: how `w_codes` lie in memory.
    implementation: `xla`: a product of XLA; `mosaic_gpu`: unpacks weights as they are read; None: the fastest that
      takes the problem on this device, as the log of `kernels` says.
    out_dtype: dtype of the result; None: that of `x`.
    behind: what becomes of the result, see `quantized_matmul`.

  Returns:
    [..., N] of `out_dtype`; behind a gate [..., N / 2]; codes int8.

  Raises:
    ValueError: wrong dtypes or shapes, an unknown implementation or gate, or a result that is not floating.
    NotImplementedError: the implementation that was asked for does not take this problem, or not on this device.
  """
  checks.implementation(implementation, _FUNCTIONS)
  _check(x, w_codes, w_scale, w_offset, bias, w_bits, layout)
  behind_lib.check(behind, layouts.outputs(w_codes, w_scale, layout))
  out_dtype = checks.out_dtype(x.dtype if out_dtype is None else out_dtype)
  arguments = dict(x=x, w_codes=w_codes, w_scale=w_scale, w_offset=w_offset, bias=bias, w_bits=w_bits, layout=layout,
                   out_dtype=out_dtype, behind=behind)
  *batch, inputs = x.shape
  return dispatch.call(_FUNCTIONS, implementation, arguments, (
      f'{math.prod(batch)} x {inputs} {x.dtype} by {inputs} x {layouts.outputs(w_codes, w_scale, layout)} of {w_bits} '
      f'bits in {len(w_scale)} groups, laid out as {layout.value}'))


def _check(x, w_codes, w_scale, w_offset, bias, w_bits, layout):
  """Raises `ValueError` for operands that do not fit each other."""
  checks.arrays('w_offset', 'bias', x=x, w_codes=w_codes, w_scale=w_scale, w_offset=w_offset, bias=bias)
  layouts.check(layout)
  if layout is layouts.Layout.DINT4:
    raise ValueError('codes in the layout dint4 multiply quantized activations only')
  if x.dtype not in _DTYPES or not x.ndim:
    raise ValueError(f'activations must be bfloat16, float16 or float32 [..., K], not {x.dtype} {list(x.shape)}')
  if w_codes.dtype != jnp.int8:
    raise ValueError(f'codes must be int8, not {w_codes.dtype}')
  checks.bits('w_bits', w_bits, 4 if layout in (layouts.Layout.INT4, layouts.Layout.INT4_WIDE) else 8)
  inputs, plain = x.shape[-1], layout is layouts.Layout.CODES
  if w_scale.ndim != 2 or w_scale.dtype != jnp.float32:
    raise ValueError(f'w_scale must be float32 [groups, outputs], not {w_scale.dtype} {list(w_scale.shape)}')
  groups, outputs = len(w_scale), layouts.outputs(w_codes, w_scale, layout)
  if w_codes.shape != layouts.shape(layout, inputs, outputs):
    raise ValueError(f'cannot contract activations of shape {x.shape} with codes of shape {w_codes.shape} in the '
                     f'layout {layout.value}, for {outputs} outputs')
  if w_scale.shape[1] not in ((1, outputs) if plain else (outputs,)) or not groups or inputs % groups:
    raise ValueError(f'w_scale {w_scale.dtype} {list(w_scale.shape)} does not fit {inputs} x {outputs} weights')
  if w_offset is not None and (w_offset.shape != w_scale.shape or w_offset.dtype != jnp.float32):
    raise ValueError(f'w_offset {w_offset.dtype} {list(w_offset.shape)} does not fit w_scale {list(w_scale.shape)}')
  checks.bias(bias, outputs)


_FUNCTIONS = {'xla': xla.weight_only, 'mosaic_gpu': mosaic.matmul}
