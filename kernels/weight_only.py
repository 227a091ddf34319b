"""Matmul of activations that are not quantized with weights that are."""

import jax.numpy as jnp

from kernels import dispatch
from kernels import prepack
from kernels.mosaic import weight_only as mosaic


def weight_only_matmul(
    x, w_codes, w_scale, *, w_offset=None, bias=None, w_bits=4, layout=prepack.Layout.CODES, implementation='xla',
    out_dtype=None,
):  # pyformat: disable
  """y[..., N] = sum over K of x * (w_scale * w_codes + w_offset), + bias.

  Args:
    x: floating [..., K].
    w_codes: int8 or int16 [K, N], or int8 in another `layout` (kernels.prepack).
    w_scale: float32 [W, N] or, for plain codes, [W, 1], W groups along K; W divides K.
    w_offset: like `w_scale`, or None for zero.
    bias: [N], or None.
    w_bits: bits of the codes.
    layout: how `w_codes` lie in memory.
    implementation: `xla`: the product of dequantized weights in the dtype of `x`; `mosaic_gpu`: unpacks weights as they
      are read, scales sums in float32; None: the fastest that takes the problem on this device, as the log of `kernels`
      says.
    out_dtype: dtype of the result; None: that of `x`.

  Returns:
    [..., N] of `out_dtype`.

  Raises:
    ValueError: wrong dtypes or shapes, or an unknown implementation.
    NotImplementedError: the implementation that was asked for does not take this problem, or not on this device.
  """
  if layout is prepack.Layout.DINT4:
    raise ValueError('codes in the layout dint4 multiply quantized activations only')
  inputs, (groups, outputs) = x.shape[-1], w_scale.shape
  plain = layout is prepack.Layout.CODES
  outputs = w_codes.shape[-1] if plain else outputs
  if implementation is not None and implementation not in _FUNCTIONS:
    raise ValueError(f'unknown implementation {implementation!r}; there are {", ".join(_FUNCTIONS)}')
  if w_codes.shape != prepack.shape(layout, inputs, outputs):
    raise ValueError(f'cannot contract activations of shape {x.shape} with codes of shape {w_codes.shape} in the '
                     f'layout {layout.value}, for {outputs} outputs')
  if w_scale.shape[1] not in (1, outputs) or inputs % groups or w_scale.dtype != jnp.float32:
    raise ValueError(f'w_scale {w_scale.dtype} {list(w_scale.shape)} does not fit {inputs} x {outputs} weights')
  if w_offset is not None and (w_offset.shape != w_scale.shape or w_offset.dtype != jnp.float32):
    raise ValueError(f'w_offset {w_offset.dtype} {list(w_offset.shape)} does not fit w_scale {list(w_scale.shape)}')
  if bias is not None and bias.shape != (outputs,):
    raise ValueError(f'bias of shape {bias.shape} does not fit {outputs} outputs')
  arguments = dict(x=x, w_codes=w_codes, w_scale=w_scale, w_offset=w_offset, bias=bias, w_bits=w_bits, layout=layout,
                   out_dtype=jnp.dtype(out_dtype or x.dtype))
  return dispatch.call(_FUNCTIONS, implementation, arguments, (
      f'{x.size // inputs} x {inputs} {x.dtype} by {inputs} x {outputs} of {w_bits} bits in {groups} groups, laid out '
      f'as {layout.value}'))


def _xla(x, w_codes, w_scale, *, w_offset, bias, w_bits, layout, out_dtype):
  """The product of dequantized weights."""
  del w_bits
  inputs, groups = x.shape[-1], len(w_scale)
  w = prepack.unpack(w_codes, layout, (inputs, w_scale.shape[1])).astype(jnp.float32)
  wide = lambda v: jnp.repeat(v, inputs // groups, axis=0)
  w = w * wide(w_scale) if w_offset is None else w * wide(w_scale) + wide(w_offset)
  y = jnp.matmul(x, w.astype(x.dtype), preferred_element_type=out_dtype)
  return y if bias is None else y + bias.astype(out_dtype)


_FUNCTIONS = {'xla': _xla, 'mosaic_gpu': mosaic.matmul}
