"""Normalization layers: statistics and gains in float32, the result in the dtype of the input."""

import jax
import jax.numpy as jnp
from flax import linen as nn


class RMSNorm(nn.Module):
  """Root mean square normalization (arXiv:1910.07467): x / sqrt(mean(x^2) + epsilon) * scale."""

  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x):
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],), jnp.float32)
    wide = x.astype(jnp.float32)
    wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
    return (wide * scale).astype(x.dtype)


class LayerNorm(nn.Module):
  """Layer normalization (arXiv:1607.06450) with scale and bias, variance by mean of squared deviations."""

  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x):
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],), jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],), jnp.float32)
    wide = x.astype(jnp.float32)
    wide -= jnp.mean(wide, axis=-1, keepdims=True)
    wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
    return (wide * scale + bias).astype(x.dtype)


NORMS = {'rms': RMSNorm, 'layer': LayerNorm}
