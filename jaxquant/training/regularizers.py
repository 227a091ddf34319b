"""Regularizers that keep outliers away: kurtosis of layer outputs, and of weights (KURE)."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxquant import errors
from jaxquant.layers import tap
from jaxquant.numerics import trees

# A row of less variance counts as constant; powers of it up to the third stay finite in float32.
_LEAST_VARIANCE = 1e-12


def kurtosis(y):
  """Kurtosis over the last axis: mean((y - mu)^4) / mean((y - mu)^2)^2, zero where all features are equal.

  About 1.8 for a uniform, 3 for a Gaussian distribution, D - 2 + 1 / (D - 1) for one spike among D zeros. Invariant
  under y -> a y + b. No epsilon stands beside the squared variance: the outputs of a fresh layer have deviations near
  0.01, next to which even 1e-8 is large, and a quotient that falls with the variance pulls them towards zero.

  Args:
    y: floating [..., features]; arithmetic is float32, since fourth powers overflow 16 bits.

  Returns:
    float32 [...].
  """
  return _from_powers(power_means(y))


@jax.custom_vjp
def power_means(y):
  """Means of the first four powers of y - shift over the last axis, shift being a typical value of the row.

  One pass over y, and a backward pass that is elementwise, so that both fuse with other work on y. Shifting keeps the
  float32 sums from cancelling. The shift is the median of three features, typical even where one of them is an outlier
  channel; it is a constant for the derivative, and central moments do not depend on it.

  Args:
    y: floating [..., features].

  Returns:
    float32 [4, ...].
  """
  return _power_means_forward(y)[0]


def _shift(y):
  a, b, c = (y[..., i : i + 1].astype(jnp.float32) for i in (0, y.shape[-1] // 2, y.shape[-1] - 1))
  return jnp.maximum(jnp.minimum(a, b), jnp.minimum(jnp.maximum(a, b), c))


def _power_means_forward(y):
  shifted = y.astype(jnp.float32) - _shift(y)
  squares = shifted * shifted
  powers = shifted, squares, squares * shifted, squares * squares
  return jnp.stack([jnp.mean(power, axis=-1) for power in powers]), y


def _power_means_backward(y, gradient):
  shifted = y.astype(jnp.float32) - _shift(y)
  g1, g2, g3, g4 = (g[..., None] * (power / y.shape[-1]) for power, g in enumerate(gradient, 1))
  return ((g1 + shifted * (g2 + shifted * (g3 + shifted * g4))).astype(y.dtype),)


power_means.defvjp(_power_means_forward, _power_means_backward)


def _from_powers(means):
  """Kurtosis [...] from the means of powers [4, ...] around any point."""
  m1, m2, m3, m4 = means
  second = m2 - m1 * m1
  fourth = m4 + m1 * (-4 * m3 + m1 * (6 * m2 - 3 * m1 * m1))
  varies = second > _LEAST_VARIANCE
  inverse = 1 / jnp.where(varies, second, 1.0)
  return jnp.where(varies, fourth * inverse * inverse, 0.0)


@dataclasses.dataclass(frozen=True)
class OutputKurtosis:
  """weight * sum over matching linears of the `reduction` over tokens of the kurtosis of their outputs.

  Source: activation regularization (arXiv:2404.03605), there with a sum over tokens and weights near 1e-5. Under a
  mean over tokens the weight does not depend on the batch; with a sum it scales with the tokens of a step.

  Attributes:
    weight: factor in the loss.
    pattern: which linears, a regular expression on their whole path.
    reduction: `mean` or `sum` over the tokens of the global batch.
    stride: measure every stride-th position of each sequence; the mean over those estimates the mean over all, at a
      fraction of the memory traffic.
  """

  weight: float
  pattern: str = r'layers/.*'
  reduction: str = 'mean'
  stride: int = 1

  def __post_init__(self):
    if self.reduction not in ('mean', 'sum'):
      raise errors.UserError(f'kurtosis.reduction is {self.reduction!r}; there are mean and sum')
    if self.stride < 1:
      raise errors.UserError(f'kurtosis.stride must be at least 1, not {self.stride}')

  def tap(self) -> tap.Tap:
    """The statistic each linear records: the means of powers of every measured token."""
    return tap.Tap(f'(?:{self.pattern})/output', lambda y: power_means(y[..., :: self.stride, :]))

  def penalty(self, recorded: list, tokens: int):
    """(penalty, mean kurtosis over linears and tokens), float32 scalars.

    Args:
      recorded: means of powers of every measured token, [4, rows, positions], for every linear.
      tokens: tokens of the global batch, for the sum over tokens.
    """
    # All linears at once: one kernel, where one for each would be dozens of tiny ones.
    mean = jnp.mean(_from_powers(jnp.stack(recorded, axis=1)))
    return self.weight * (tokens if self.reduction == 'sum' else 1) * len(recorded) * mean, mean


@dataclasses.dataclass(frozen=True)
class WeightKurtosis:
  """weight * mean over matching kernels of (kurtosis - target)^2: KURE (arXiv:2002.07686).

  The kurtosis is that of each output channel, whose weights share a scale when they are rounded, averaged over channels.

  Attributes:
    weight: factor in the loss.
    pattern: which linears, a regular expression on their whole path.
    target: kurtosis aimed at; 1.8 is that of the uniform distribution, which rounds best.
  """

  weight: float
  pattern: str = r'layers/.*'
  target: float = 1.8

  def penalty(self, params: dict):
    """(penalty, mean kurtosis over the kernels); float32 scalars."""
    kernels = [trees.get(params, path)['kernel'] for path in trees.matching(self.pattern, trees.linears(params))]
    values = jnp.stack([jnp.mean(kurtosis(kernel.T)) for kernel in kernels])
    return self.weight * jnp.mean((values - self.target) ** 2), jnp.mean(values)
