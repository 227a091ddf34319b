"""Rounding that gradients pass through: the straight-through estimator and quantizers whose range is learned.

Each function returns the quantized *values* (not codes) in the dtype of `x` and is differentiable in `x` and in its
range parameters. Arithmetic is float32 inside; gradients of range parameters are sums over all elements of `x`.
"""

import functools

import jax
import jax.numpy as jnp


@jax.custom_jvp
def straight_through_round(x):
  """Rounds half to even; the derivative is 1."""
  return jnp.round(x)


@straight_through_round.defjvp
def _(primals, tangents):
  return jnp.round(primals[0]), tangents[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def clip_quantize(x, low, high, bits: int):
  """Two-sided learned clip: `2^bits` uniform levels from `low` to `high` inclusive.

  Forward: s = (high - low) / n, u = (clip(x, low, high) - low) / s, value = low + s * round(u), n = 2^bits - 1.
  Backward for g = dL/dvalue: outside the range, dx = 0 and the nearer end receives sum(g); inside, dx = g, and with
  e = (u - round(u)) / n the ends receive sum(-e * g) (high) and sum(e * g) (low). An element equal to an end counts
  as outside. This is straight-through differentiation of the forward formula (activation regularization,
  arXiv:2404.03605; its public kernel clamps x - low instead of x in the backward, which is wrong for x > high + low).

  Args:
    x: floating array of any shape.
    low, high: float32 scalars, or [*shape], a range for each of the last axes of `x`; low < high.
    bits: bits of a code.

  Returns:
    Array like `x`.
  """
  return _clip_levels(x, low, high, bits)[0].astype(x.dtype)


def _clip_levels(x, low, high, bits):
  """Values, and the position `u` of every clipped element in steps above `low`."""
  steps = range_steps(x, low, high, bits)
  return low + (high - low) * (1 / (2**bits - 1)) * jnp.round(steps), steps


def range_steps(x, low, high, bits: int):
  """Position of every element of `x`, clipped to [low, high], in steps above `low`: float32 in [0, 2^bits - 1].

  Multiplies by the inverse step, a scalar: a division per element costs as much as the rest of the quantizer.
  """
  return (jnp.clip(x.astype(jnp.float32), low, high) - low) * ((2**bits - 1) / (high - low))


def _clip_forward(x, low, high, bits):
  return clip_quantize(x, low, high, bits), (x, low, high)


def _clip_backward(bits, saved, gradient):
  x, low, high = saved
  g = gradient.astype(jnp.float32)
  wide = x.astype(jnp.float32)
  _, steps = _clip_levels(x, low, high, bits)
  error = g * (steps - jnp.round(steps)) * (1 / (2**bits - 1))  # zero outside, where steps are whole
  above, below = wide >= high, wide <= low
  ends = jnp.where(below, g, error), jnp.where(above, g, -error)
  d_low, d_high = (jnp.sum(d, axis=tuple(range(d.ndim - low.ndim))) for d in ends) if low.ndim else _totals(*ends)
  return jnp.where(above | below, 0.0, g).astype(x.dtype), d_low.astype(low.dtype), d_high.astype(high.dtype)


clip_quantize.defvjp(_clip_forward, _clip_backward)


def _totals(*arrays):
  """The sum of all elements of each array, rows first: sums over rows fuse with elementwise work on the same arrays."""
  rows = jax.lax.optimization_barrier(tuple(jnp.sum(x, axis=-1).reshape(-1) for x in arrays))
  add = lambda sums, more: tuple(map(jnp.add, sums, more))
  return jax.lax.reduce(rows, (jnp.float32(0),) * len(rows), add, (0,))


def align_zero(low, high, bits: int):
  """Moves a range by less than half a step so that zero is a level; straight-through in both ends.

  Returns:
    (low, high) = (-z * s, (n - z) * s) with s = (high - low) / n and z = round(-low / s).
  """
  steps = 2**bits - 1
  step = (high - low) / steps
  zero = straight_through_round(-low / step)
  return -zero * step, (steps - zero) * step


def step_quantize(x, step, minimum: int, maximum: int):
  """Learned step size quantization (LSQ, arXiv:1902.08153, equations 1 to 3).

  value = step * round(clip(v, minimum, maximum)) with v = x / step. The step's gradient, sum of round(v) - v inside and
  of the bound outside, is multiplied by 1 / sqrt(elements * maximum). A v equal to a bound counts as outside.

  Args:
    x: floating array.
    step: positive float32 scalar.
    minimum, maximum: the code range.

  Returns:
    Array like `x`.
  """
  scale = 1 / (x.size * maximum) ** 0.5
  step += (scale - 1) * (step - jax.lax.stop_gradient(step))  # the same value, to the bit, and a smaller gradient
  v = x.astype(jnp.float32) / step
  inside = (v > minimum) & (v < maximum)
  v = jnp.where(inside, v, jax.lax.stop_gradient(jnp.clip(v, minimum, maximum)))
  return (straight_through_round(v) * step).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def pact_quantize(x, clip, bits: int, signed: bool):
  """PACT (arXiv:1805.06085, equations 1 to 3): levels over [0, clip], or [-clip, clip] when `signed`.

  The clip receives sum(g) of the elements at or above it (minus those at or below -clip); rounding adds nothing.
  """
  low = -clip if signed else jnp.zeros_like(clip)
  return _clip_levels(x, low, clip, bits)[0].astype(x.dtype)


def _pact_forward(x, clip, bits, signed):
  return pact_quantize(x, clip, bits, signed), (x, clip)


def _pact_backward(bits, signed, saved, gradient):
  x, clip = saved
  g, wide = gradient.astype(jnp.float32), x.astype(jnp.float32)
  above, below = wide >= clip, wide <= (-clip if signed else 0.0)
  d_clip = _totals(jnp.where(above, g, jnp.where(below, -g, 0.0) if signed else 0.0))[0]
  return jnp.where(above | below, 0.0, g).astype(x.dtype), d_clip.astype(clip.dtype)


pact_quantize.defvjp(_pact_forward, _pact_backward)
