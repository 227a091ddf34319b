"""Regularizers that keep outliers away: kurtosis of layer outputs, and of weights (KURE)."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from jaxquant import errors
from jaxquant.layers import tap
from jaxquant.numerics import trees

# A row of less variance counts as constant; powers of it up to the third stay finite in float32.
_LEAST_VARIANCE = 1e-12
# Features that are summed by one warp of a GPU; the sums of longer rows wait for each other several times as long.
_RUN = 512


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
  wide = y.astype(jnp.float32)
  return _from_powers(_power_means(wide - jax.lax.stop_gradient(_typical(wide))))


def _typical(wide):
  """A value amid those of each row: float32 [..., 1] of float32 [..., features].

  Shifting by it keeps sums of powers from cancelling, at the price of reading three features. Their median is typical
  even where one of them is an outlier channel. Central moments do not depend on it, so it counts as a constant.
  """
  a, b, c = (wide[..., i : i + 1] for i in (0, wide.shape[-1] // 2, wide.shape[-1] - 1))
  return jnp.maximum(jnp.minimum(a, b), jnp.minimum(jnp.maximum(a, b), c))


def _power_means(wide):
  """Means of the first four powers over the last axis: float32 [4, ...] of float32 [..., features]."""
  squares = wide * wide
  return jnp.stack([jnp.mean(power, axis=-1) for power in (wide, squares, squares * wide, squares * squares)])


def _from_powers(means):
  """Kurtosis [...] from the means of powers [4, ...] around any point."""
  m1, m2, m3, m4 = means
  second = m2 - m1 * m1
  fourth = m4 + m1 * (-4 * m3 + m1 * (6 * m2 - 3 * m1 * m1))
  varies = second > _LEAST_VARIANCE
  inverse = 1 / jnp.where(varies, second, 1.0)
  return jnp.where(varies, fourth * inverse * inverse, 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def sampled_power_means(y, stride: int):
  """Means of the first four powers over the features around a typical one, for a sample of the sequences.

  One pass over the sample, behind a look at three features of each token. The backward pass is a polynomial of every
  feature whose coefficients, four for each token, are zero outside the sample: elementwise, it joins the pass that
  makes the rest of the gradient of `y`, where zeros put between the derivatives of a sample would keep that pass from
  reading several features at once. The point around which powers are taken counts as a constant, as in `kurtosis`:
  what is made of the means must not depend on it.

  Args:
    y: floating [sequences, positions, features].
    stride: every stride-th sequence is measured, or more where it does not divide their number.

  Returns:
    float32 [4, sampled sequences, positions].
  """
  return _sampled_forward(y, stride)[0]


def _sampled_forward(y, stride):
  group = math.gcd(y.shape[0], stride)
  # The first sequence of each group, on whichever device it is.
  sample = y.reshape(-1, group, *y.shape[1:])[:, 0].astype(jnp.float32)
  # By itself, so that the pass over all features reads one number for each token and not three.
  typical = jax.lax.optimization_barrier(_typical(sample))
  sample -= typical
  run = next(size for size in range(min(_RUN, y.shape[-1]), 0, -1) if y.shape[-1] % size == 0)
  sample = sample.reshape(*sample.shape[:-1], -1, run)
  squares = sample * sample
  powers = sample, squares, squares * sample, squares * squares
  add = lambda sums, more: tuple(map(jnp.add, sums, more))
  sums = jax.lax.optimization_barrier(jax.lax.reduce(powers, (jnp.float32(0),) * 4, add, (sample.ndim - 1,)))
  return jnp.sum(jnp.stack(sums), axis=-1) / y.shape[-1], (y, typical)


def _sampled_backward(stride, residuals, gradient):
  y, typical = residuals
  group = math.gcd(y.shape[0], stride)
  factors = gradient * jnp.arange(1, 5, dtype=jnp.float32)[:, None, None] / y.shape[-1]
  rows = jnp.concatenate([factors, typical[None, ..., 0]])
  spread = jnp.pad(rows[:, :, None], ((0, 0), (0, 0), (0, group - 1), (0, 0))).reshape(5, *y.shape[:2], 1)
  c1, c2, c3, c4, shift = jax.lax.optimization_barrier(tuple(spread))
  wide = y.astype(jnp.float32) - shift
  return ((c1 + wide * (c2 + wide * (c3 + wide * c4))).astype(y.dtype),)


sampled_power_means.defvjp(_sampled_forward, _sampled_backward)


@dataclasses.dataclass(frozen=True)
class OutputKurtosis:
  """weight * every * sum over matching linears of the `reduction` over tokens of the kurtosis of their outputs.

  Source: activation regularization (arXiv:2404.03605), there with a sum over tokens and weights near 1e-5. Under a
  mean over tokens the weight does not depend on the batch; with a sum it scales with the tokens of a step.

  Attributes:
    weight: factor in the loss.
    pattern: which linears, a regular expression on their whole path.
    reduction: `mean` or `sum` over the tokens of the global batch.
    stride: measure every stride-th sequence; the mean over those estimates the mean over all, at a fraction of the
      memory traffic.
    every: measure at every so many-th training step, with so many times the weight (lazy regularization,
      arXiv:1912.04958): the passes over gradients that a measurement costs do not shrink with the sample.
  """

  weight: float
  pattern: str = r'layers/.*'
  reduction: str = 'mean'
  stride: int = 1
  every: int = 1

  def __post_init__(self):
    if self.reduction not in ('mean', 'sum'):
      raise errors.UserError(f'kurtosis.reduction is {self.reduction!r}; there are mean and sum')
    for name in ('stride', 'every'):
      if getattr(self, name) < 1:
        raise errors.UserError(f'kurtosis.{name} must be at least 1, not {getattr(self, name)}')

  def tap(self) -> tap.Tap:
    """The statistic each linear records: the means of powers of every measured token."""
    return tap.Tap(f'(?:{self.pattern})/output', lambda y: sampled_power_means(y, self.stride))

  def penalty(self, recorded: list, tokens: int):
    """(penalty, mean kurtosis over linears and tokens), float32 scalars.

    Args:
      recorded: means of powers of every measured token, [4, rows, positions], for every linear.
      tokens: tokens of the global batch, for the sum over tokens.
    """
    # All linears at once: one kernel, where one for each would be dozens of tiny ones.
    mean = jnp.mean(_from_powers(jnp.stack(recorded, axis=1)))
    factor = self.weight * self.every * (tokens if self.reduction == 'sum' else 1)
    return factor * len(recorded) * mean, mean


@dataclasses.dataclass(frozen=True)
class WeightKurtosis:
  """weight * mean over matching kernels of (kurtosis - target)^2: KURE (arXiv:2002.07686).

  The kurtosis is that of each output channel, whose weights share a scale when they are rounded; the mean over channels
  counts.

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
