"""Products of quantized operands that a user of JAX has without kernels, each in the form that suits XLA."""

import jax
import jax.numpy as jnp


def int8(x, w):
  """The bare product of weights [N, K], the order in which XLA's library is fastest."""
  return jax.lax.dot_general(x, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)


def int4(x, w):
  """The same of int4 weights [K, N]: in the other order XLA cannot compile it for one token."""
  return jnp.matmul(x, w.astype(jnp.int8), preferred_element_type=jnp.int32)


def weight_only(x, w):
  """The product of int4 codes as bfloat16, which they are exactly, and then the scales of the outputs."""
  codes, scale = w
  return (jnp.matmul(x, codes.astype(x.dtype), preferred_element_type=jnp.float32) * scale).astype(x.dtype)
