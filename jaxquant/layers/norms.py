"""Normalization layers: statistics and gains in float32, the result in the dtype of the input."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn


class Sum(NamedTuple):
  """A sum of the residual stream not computed yet, for a norm's reader that can do that, too.

  Attributes:
    x, y: floating [..., features], of one dtype.
  """

  x: Any
  y: Any

  @property
  def shape(self) -> tuple[int, ...]:
    """That of both."""
    return self.x.shape


def summed(x):
  """The array that x is, or the sum."""
  return x.x + x.y if isinstance(x, Sum) else x


class Normed(NamedTuple):
  """A normalization not computed yet, for a reader that can do it on the way to its codes.

  Attributes:
    x: floating [..., features], or a `Sum`.
    kind: `rms` or `layer`.
    epsilon: added to the mean square, or to the variance.
    scale: float32 [features].
    bias: float32 [features], or None.
  """

  x: Any
  kind: str
  epsilon: float
  scale: Any
  bias: Any = None

  def compute(self):
    """The activation [..., features] in the dtype of `x`."""
    x = summed(self.x)
    wide = x.astype(jnp.float32)
    if self.kind == 'layer':
      wide -= jnp.mean(wide, axis=-1, keepdims=True)
    wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
    wide *= self.scale
    return (wide if self.bias is None else wide + self.bias).astype(x.dtype)


class RMSNorm(nn.Module):
  """Root mean square normalization (arXiv:1910.07467): x / sqrt(mean(x^2) + epsilon) * scale."""

  epsilon: float = 1e-5

  def __call__(self, x):
    return self.normed(x).compute()

  @nn.compact
  def normed(self, x) -> Normed:
    """The same, not computed yet."""
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],), jnp.float32)
    return Normed(x, 'rms', self.epsilon, scale)


class LayerNorm(nn.Module):
  """Layer normalization (arXiv:1607.06450) with scale and bias, variance by mean of squared deviations."""

  epsilon: float = 1e-5

  def __call__(self, x):
    return self.normed(x).compute()

  @nn.compact
  def normed(self, x) -> Normed:
    """The same, not computed yet."""
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],), jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],), jnp.float32)
    return Normed(x, 'layer', self.epsilon, scale, bias)


NORMS = {'rms': RMSNorm, 'layer': LayerNorm}
