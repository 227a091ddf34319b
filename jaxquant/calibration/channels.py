"""Statistics of every channel of an activation. All merge."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxquant.calibration import statistics
from jaxquant.numerics import quantize


@statistics.statistic
class ChannelExtrema:
  """Least and greatest value of every channel: float32 [features] each. Merges exactly."""

  low: Any
  high: Any

  @classmethod
  def empty(cls, features: int) -> 'ChannelExtrema':
    """The statistic of no values."""
    # With a dtype: that of a weakly typed constant would change with the first batch, which compiles another `observe`.
    return cls(jnp.full(features, jnp.inf, jnp.float32), jnp.full(features, -jnp.inf, jnp.float32))

  def observed(self, x) -> 'ChannelExtrema':
    """With the values of `x`."""
    low, high = quantize.extrema(x.astype(jnp.float32), axis=(0, 1))
    return self.merged(ChannelExtrema(low, high))

  def merged(self, other: 'ChannelExtrema') -> 'ChannelExtrema':
    """With the values of both."""
    return ChannelExtrema(jnp.minimum(self.low, other.low), jnp.maximum(self.high, other.high))

  def magnitude(self):
    """Largest magnitude of every channel, float32 [features]."""
    return jnp.maximum(-self.low, self.high)


@statistics.statistic
class ChannelMagnitude:
  """Mean magnitude of every channel. Merges to float32 rounding."""

  total: Any
  tokens: Any

  @classmethod
  def empty(cls, features: int) -> 'ChannelMagnitude':
    """The statistic of no values."""
    return cls(jnp.zeros(features), jnp.float32(0))

  def observed(self, x) -> 'ChannelMagnitude':
    """With the values of `x`."""
    total = jnp.sum(jnp.abs(x.astype(jnp.float32)), axis=(0, 1))
    return self.merged(ChannelMagnitude(total, jnp.float32(x.shape[0] * x.shape[1])))

  def merged(self, other: 'ChannelMagnitude') -> 'ChannelMagnitude':
    """With the values of both."""
    return jax.tree.map(jnp.add, self, other)

  def mean(self):
    """Mean magnitude, float32 [features]."""
    return self.total / jnp.maximum(self.tokens, 1)


@statistics.statistic
class SecondMoment:
  """Sum of x^T x over tokens: the Hessian of every layer-wise quadratic error. Merges to float32 rounding.

  ||X (A - B)||^2 = trace((A - B)^T X^T X (A - B)) for kernels A and B [in, out], so that GPTQ and every search that is
  judged at a linear's own output need this matrix only.
  """

  matrix: Any
  tokens: Any

  @classmethod
  def empty(cls, features: int) -> 'SecondMoment':
    """The statistic of no values."""
    return cls(jnp.zeros((features, features)), jnp.float32(0))

  def observed(self, x) -> 'SecondMoment':
    """With the values of `x`. Products of 16-bit floats are exact in the float32 that they are summed in."""
    x = x.reshape(-1, x.shape[-1])
    precision = None if x.dtype in (jnp.bfloat16, jnp.float16) else jax.lax.Precision.HIGHEST
    matrix = jnp.matmul(x.T, x, precision=precision, preferred_element_type=jnp.float32)
    return self.merged(SecondMoment(matrix, jnp.float32(x.shape[0])))

  def merged(self, other: 'SecondMoment') -> 'SecondMoment':
    """With the values of both."""
    return jax.tree.map(jnp.add, self, other)

  def mean(self):
    """Mean of x^T x over tokens, float32 [features, features]."""
    return self.matrix / jnp.maximum(self.tokens, 1)

  def count(self):
    """How many tokens there were, int32."""
    return self.tokens.astype(jnp.int32)


def output_error(moment, difference):
  """trace(difference^T moment difference), the squared error of a linear's output summed over outputs.

  Args:
    moment: mean of x^T x, float32 [in, in].
    difference: of two kernels, [..., in, out].

  Returns:
    float32 [...].
  """
  product = jnp.matmul(moment, difference, precision=jax.lax.Precision.HIGHEST)
  return jnp.sum(difference * product, axis=(-2, -1))
