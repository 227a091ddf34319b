"""What happens to an activation before it is quantized: a gate, a norm, a shift and scale of channels, a transform.

A shift and a scale that follow a norm (Outlier Suppression+, arXiv:2304.09145) can be folded into its gain and bias
and then cost nothing; they stand here for activations that no norm precedes, and for norms with other readers.
"""

from collections.abc import Callable
import math
import numbers
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kernels import checks
from kernels import gates

NORMS = ('rms', 'layer')
VECTORS = ('gain', 'bias', 'shift', 'scale')


class Before(NamedTuple):
  """A gate, a norm, then (x - shift) / scale, each rounded to the dtype, then a transform of blocks in float32.

  Attributes:
    norm: `rms`, `layer` or None.
    gain: float32 [K], which multiplies the normalized activation, or None; with a norm alone.
    bias: float32 [K], added to it, or None; with a norm alone.
    epsilon: added to the mean square, or to the variance.
    shift, scale: float32 [K], or None.
    hadamard: features of a block that the normalized Walsh-Hadamard matrix of that order multiplies, a power of two
      that divides K; 1 for none.
    gate: one of `gates.GATES`, of half of 2 K features in pairs of runs (`gates.paired`), which multiplies the others
      before all else; None for none.
  """

  norm: str | None = None
  gain: Any = None
  bias: Any = None
  epsilon: float = 1e-6
  shift: Any = None
  scale: Any = None
  hadamard: int = 1
  gate: str | None = None


def narrow(value, dtype):
  """The value rounded to the dtype; of a mere conversion there and back, XLA may keep the excess precision on GPUs."""
  kind = jnp.finfo(dtype)
  return jax.lax.reduce_precision(value, kind.nexp, kind.nmant).astype(dtype)


def features(before: Before, given: int) -> int:
  """The features that are quantized, of so many given.

  Raises:
    ValueError: it is no `Before`, or its gate does not take so many.
  """
  if not isinstance(before, Before):
    raise ValueError(f'what happens before is a kernels.Before, not a {type(before).__name__}')
  gates.check(before.gate, given)
  return given // 2 if before.gate else given


def check(before: Before, features: int) -> None:
  """Raises `ValueError` for what does not fit activations of `features`."""
  if before.norm not in (None, *NORMS):
    raise ValueError(f'unknown norm {before.norm!r}; there are {" and ".join(NORMS)}')
  checks.arrays(*VECTORS, **{name: getattr(before, name) for name in VECTORS})
  if not before.norm and not (before.gain is None and before.bias is None):
    raise ValueError('a gain and a bias belong to a norm, and there is none')
  if isinstance(before.epsilon, bool) or not isinstance(before.epsilon, numbers.Real) or not before.epsilon >= 0:
    raise ValueError(f'the epsilon of a norm is a number of at least 0, not {before.epsilon!r}')
  for name in VECTORS:
    vector = getattr(before, name)
    if vector is not None and (vector.shape != (features,) or not jnp.issubdtype(vector.dtype, jnp.floating)):
      raise ValueError(f'{name} of {vector.dtype} {list(vector.shape)} does not fit activations of {features} features')
  block = before.hadamard
  if not checks.integral(block) or block < 1 or block & (block - 1) or features % block:
    raise ValueError(f'a Hadamard transform takes blocks of a power of two that divides {features}, not of {block}')


def rotated(x, block: int):
  """Products of blocks of the last axis of [..., K] with the normalized Walsh-Hadamard matrix (Sylvester's order).

  The fast transform: log2(block) rounds of sums and differences, of neighbors first, in float32.
  """
  x, shape = x.astype(jnp.float32), x.shape
  for distance in (1 << power for power in range(block.bit_length() - 1)):
    low, high = jnp.unstack(x.reshape(*shape[:-1], shape[-1] // (2 * distance), 2, distance), axis=-2)
    x = jnp.stack([low + high, low - high], axis=-2)
  return x.reshape(shape) * (1 / math.sqrt(block))


def apply(
    x, before: Before, transform: Callable[[Any, int], Any] = rotated,
    load: Callable[[Any], Any] = lambda vector: vector,
    narrow: Callable[[Any, Any], Any] = narrow, wide: Callable[[Any], Any] = lambda a: a.astype(jnp.float32),
    mean: Callable[[Any, int], Any] = lambda x, power: jnp.mean(x**power, axis=-1, keepdims=True),
    logistic: Callable[[Any], Any] = jax.lax.logistic, divide: Callable[[Any, Any], Any] = operator.truediv):
  """The activation that is quantized, in the dtype of `x` or in float32: the arithmetic that every implementation runs.

  Args:
    x: floating [..., K], or, with a gate, both halves of it (`gates.halves`).
    before: what happens to it.
    transform: (floating [..., K], block) -> float32 [..., K], as `rotated` computes it.
    load: makes an array of a vector of `before` when its turn comes.
    narrow: (float32 value, dtype) -> the value in the dtype, rounded.
    wide: (floating value) -> float32.
    mean: (float32 [..., K], 1 or 2) -> the mean of each token's numbers to this power, in a shape that broadcasts.
    logistic: of float32 numbers, for a gate.
    divide: (float32 [..., K], float32 [K]) -> the quotients.
  """
  if before.gate is not None:
    x = gates.apply(before.gate, *x, narrow, logistic, wide)
  dtype = x.dtype
  if before.norm:
    x = wide(x)
    if before.norm == 'layer':
      x = x - mean(x, 1)
    x = x * jax.lax.rsqrt(mean(x, 2) + before.epsilon)
    x = x if before.gain is None else x * load(before.gain)
    x = narrow(x if before.bias is None else x + load(before.bias), dtype)
  if before.shift is not None:
    x = narrow(wide(x) - load(before.shift), dtype)
  if before.scale is not None:
    x = narrow(divide(wide(x), load(before.scale)), dtype)
  if before.hadamard > 1:
    x = transform(x, before.hadamard)
  return x
