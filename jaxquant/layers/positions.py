"""Rotary position embeddings in the half-split convention of Hugging Face checkpoints."""

import jax.numpy as jnp


def rotary_angles(positions, head_dim: int, theta: float):
  """Cosine and sine of every rotation.

  Args:
    positions: int [..., tokens].
    head_dim: even; pair i is (i, i + head_dim / 2) and turns by position * theta^(-2 i / head_dim).
    theta: base of the frequencies.

  Returns:
    (cos, sin), float32 [..., tokens, 1, head_dim / 2], to broadcast over heads.
  """
  frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
  angles = positions[..., None, None].astype(jnp.float32) * frequencies
  return jnp.cos(angles), jnp.sin(angles)


def rotate(x, angles):
  """Rotates x [..., tokens, heads, head_dim] by `angles` of `rotary_angles`; float32 inside (RoFormer, arXiv:2104.09864)."""
  cos, sin = angles
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
