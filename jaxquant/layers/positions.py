"""Where a token stands: rotary embeddings, in the half-split convention of Hugging Face, and linear biases."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Rotation:
  """Frequencies of rotary position embeddings (RoFormer, arXiv:2104.09864), perhaps stretched to longer texts.

  Attributes:
    theta: base: pair i of a head of `dim` features turns by position * theta^(-2 i / dim).
    scaling: `none`; `linear`: all frequencies are divided by `factor`; or `llama3`, that of LLaMA 3.1: those whose
      wavelength exceeds original_length / low_factor are divided, those below original_length / high_factor are left
      alone, and in between the two are mixed, linearly in original_length / wavelength.
    factor, low_factor, high_factor, original_length: see there; the length is in tokens.
  """

  theta: float = 10_000.0
  scaling: str = 'none'
  factor: float = 1.0
  low_factor: float = 1.0
  high_factor: float = 4.0
  original_length: int = 8192

  def frequencies(self, head_dim: int) -> np.ndarray:
    """Radians a token of each pair of features: float32 [head_dim / 2]."""
    plain = self.theta ** (-np.arange(0, head_dim, 2) / head_dim)
    if self.scaling == 'llama3':
      waves = self.original_length * plain / (2 * math.pi)  # in the original length
      kept = np.clip((waves - self.low_factor) / (self.high_factor - self.low_factor), 0.0, 1.0)
      plain = kept * plain + (1 - kept) * plain / self.factor
    elif self.scaling == 'linear':
      plain = plain / self.factor
    return plain.astype(np.float32)


def rotary_angles(positions, head_dim: int, rotation: Rotation):
  """Cosine and sine of every rotation.

  Args:
    positions: int [..., tokens].
    head_dim: even; pair i is (i, i + head_dim / 2).
    rotation: the frequencies.

  Returns:
    (cos, sin), float32 [..., tokens, 1, head_dim / 2], to broadcast over heads (kernels.attention.rotate).
  """
  angles = positions[..., None, None].astype(jnp.float32) * rotation.frequencies(head_dim)
  return jnp.cos(angles), jnp.sin(angles)


def alibi_slopes(heads: int) -> np.ndarray:
  """How fast the scores of each head fall with distance (ALiBi, arXiv:2108.12409, section 3): float32 [heads].

  For a power of two they are 2^(-8 i / heads), i from 1. Other numbers take every second slope of twice the next lower
  power behind those of the power itself, as in the paper's code and in BLOOM.
  """
  power = 2 ** int(math.log2(heads))
  series = lambda count: 2.0 ** (-8.0 * np.arange(1, count + 1) / count)
  return np.concatenate([series(power), series(2 * power)[::2][: heads - power]]).astype(np.float32)


def alibi_bias(heads: int, positions, keys: int):
  """What ALiBi adds to the scores: slope * (key - query).

  Args:
    heads: query heads.
    positions: int [..., queries], where the queries stand among the keys.
    keys: how many there are.

  Returns:
    float32 [..., heads, queries, keys].
  """
  distances = jnp.arange(keys, dtype=jnp.float32) - positions[..., None, :, None]
  return alibi_slopes(heads)[:, None, None] * distances
