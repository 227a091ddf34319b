"""The implementation `mosaic_gpu` of `kernels.quantize_activations`: a warpgroup holds a token, read once."""

import math

import jax
from jax import lax
import jax.numpy as jnp

from kernels.mosaic import calls

# What the registers of 128 threads hold of a token in float32, alone and beside what a norm needs.
MOST_FEATURES = 16_384
MOST_NORMALIZED = 12_288


def quantize(codes_of, x, *, bits: int, symmetric: bool, before):
  """(codes, scale, offset, row sums) of tokens; `codes_of` is the arithmetic, and the arguments are checked already.

  Raises:
    NotImplementedError: not on this device, not for this shape or dtype, or under differentiation.
  """
  calls.check_device()
  return lowered(codes_of, x, bits=bits, symmetric=symmetric, before=before)


def lowered(codes_of, x, *, bits: int, symmetric: bool, before):
  """The same, for whatever device it is lowered."""
  features = x.shape[-1]
  if x.dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
    raise NotImplementedError(f'it takes bfloat16, float16 or float32, not {x.dtype}')
  most = MOST_FEATURES if before.norm is None else MOST_NORMALIZED
  if features % 256 or features > most or not x.size:
    raise NotImplementedError(f'it takes tokens of a multiple of 256 features up to {most}, not {x.shape}')
  operands = {'x': x} | {name: getattr(before, name) for name in ('gain', 'bias', 'shift', 'scale')}

  def run(operands):
    filled = before._replace(**{name: operands[name] for name in operands if name != 'x'})
    return _run(codes_of, operands['x'], bits, symmetric, filled)

  codes, scale, *offset, row_sums = calls.guarded(run, operands, ('x',))
  return codes, scale, offset[0] if offset else None, row_sums


def _run(codes_of, x, bits, symmetric, before):
  """Calls the kernel: a block of threads for each token."""
  from jax.experimental.pallas import mosaic_gpu as plgpu  # pylint: disable=g-import-not-at-top
  from kernels.mosaic import tiles  # pylint: disable=g-import-not-at-top
  *batch, features = x.shape
  tokens = math.prod(batch)
  width = next(width for width in (8, 4, 2) if features % (128 * width) == 0)
  layout = plgpu.Layout.WG_STRIDED((features,), vec_size=width)
  names = [name for name in ('gain', 'bias', 'shift', 'scale') if getattr(before, name) is not None]

  def kernel(x_gmem, *refs):
    vectors, (codes_gmem, scale_gmem, *offset_gmem, sums_gmem) = refs[: len(names)], refs[len(names) :]
    token = lax.axis_index('token')
    load = lambda ref: tiles.load(ref, layout, optimized=False)
    here = before._replace(**{name: load(ref) for name, ref in zip(names, vectors)})
    codes, scale, offset = codes_of(load(x_gmem.at[token]), bits=bits, symmetric=symmetric, before=here)
    codes_gmem[token] = codes.astype(jnp.int32).astype(jnp.int8)
    scale_gmem[token] = scale
    if offset is not None:
      offset_gmem[0][token] = offset
    # A sum of integers below 2^24 is exact in float32.
    sums_gmem[token] = jnp.sum(codes).astype(jnp.int32)

  numbers = lambda dtype: jax.ShapeDtypeStruct((tokens,), dtype)
  codes, *rest = plgpu.kernel(
      kernel,
      out_type=(jax.ShapeDtypeStruct((tokens, features), jnp.int8), *[numbers(jnp.float32)] * (1 if symmetric else 2),
                numbers(jnp.int32)),
      grid=(tokens,), grid_names=('token',), compiler_params=tiles.PARAMS,
  )(x.reshape(tokens, features), *(getattr(before, name).astype(jnp.float32) for name in names))
  return (codes.reshape(x.shape), *(a.reshape(*batch, 1) for a in rest))
