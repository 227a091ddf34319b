"""What becomes of results on their way to memory: what implementations are asked for, and held to."""

import itertools

import jax.numpy as jnp
import numpy as np

import kernels
from kernels import gates

# Scale and offset of a static range.
RANGES = {'numbers': None, 'codes': (0.3, None), 'codes of a lower end': (0.2, 1.7)}
BEHIND = [*itertools.product([None], list(RANGES)[1:]), *itertools.product(['silu'], RANGES)]


def behind(gate: str | None, name: str, size: float = 1, bits: int = 4) -> kernels.Behind:
  """What is asked for, for results of about this size."""
  ends = RANGES[name]
  static = None if ends is None else kernels.StaticRange(
      *(None if end is None else jnp.float32(size * end) for end in ends))
  return kernels.Behind(gate, static, bits)


def halves(values):
  """`gates.halves` of a NumPy array, whose dtype it keeps."""
  runs = values.reshape(*values.shape[:-1], -1, 2, gates.RUN)
  return (runs[..., i, :].reshape(*values.shape[:-1], -1) for i in range(2))


def expected(plain, asked: kernels.Behind):
  """(the values that are asked for, what arithmetic may lose of them), float64, of results that are as they were."""
  values, kind = np.asarray(plain, np.float64), jnp.finfo(plain.dtype)
  if not asked.gate:
    return values, 1e-5 * np.abs(values)
  gate, others = halves(values)
  values = gate / (1 + np.exp(np.minimum(-gate, 100))) * others
  # As a model has it, each of three steps is rounded, or is zero; XLA's logistic function has an error near 1's own.
  return values, max(4 * float(kind.eps), 1e-5) * np.abs(values) + max(float(kind.tiny), 2**-19) * np.abs(
      gate * others) + float(kind.tiny)


def excess(got, plain, asked: kernels.Behind) -> float:
  """By how much results are too far from what they should be, at worst; at most zero is near enough.

  Args:
    got: the results, as a NumPy array.
    plain: those of the same implementation when nothing is asked for, in their dtype.
    asked: what was.
  """
  want, lost = expected(plain, asked)
  if asked.static is None:
    assert got.dtype == plain.dtype
    return (np.abs(np.asarray(got, np.float64) - want) - lost).max()
  assert got.dtype == np.int8
  scale, offset = (0 if end is None else float(end) for end in asked.static)
  shift = 2 ** (asked.bits - 1)
  assert got.min() >= -shift and got.max() < shift
  clipped = np.clip(want, offset - shift * scale, offset + (shift - 1) * scale)
  return (np.abs(got * scale + offset - clipped) - lost - 0.5001 * scale).max()
