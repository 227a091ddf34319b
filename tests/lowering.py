"""Products lowered for CUDA, which needs no GPU."""

import jax
import jax.numpy as jnp

import kernels
from kernels.mosaic import matmul


def product(arguments, **static) -> str:
  """The program of a product of `kernel_cases.product`, int8 by int4 in bfloat16 but for what is said."""
  static = dict(layout=kernels.Layout.INT4, x_bits=8, w_bits=4, out_dtype=jnp.bfloat16) | static
  call = jax.jit(lambda operands: matmul.lowered(operands, **static))
  return call.trace(arguments).lower(lowering_platforms=('cuda',)).as_text()
