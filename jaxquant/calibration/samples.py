"""A bounded sample of whole sequences, for searches that run a module: attention mixes the tokens of a sequence."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.calibration import statistics

_NONE = np.uint32(0xFFFFFFFF)


@statistics.statistic
class SequenceSample:
  """The sequences whose hashed identities are smallest: a random sample that merges exactly.

  Attributes:
    activations: [sequences, tokens, features] in the dtype they came in.
    hashes: uint32 [sequences], ascending; 0xFFFFFFFF where no sequence has come yet.
  """

  activations: Any
  hashes: Any

  @classmethod
  def empty(cls, sequences: int, shape: tuple[int, int], dtype) -> 'SequenceSample':
    """A sample of up to `sequences` sequences, of `shape` (tokens, features) each."""
    return cls(jnp.zeros((sequences, *shape), dtype), jnp.full(sequences, _NONE))

  def observed(self, x, ids) -> 'SequenceSample':
    """With the sequences `x` [sequences, tokens, features] of identities `ids` [sequences].

    Raises:
      UserError: they are not as long as those before them.
    """
    if x.shape[1:] != self.activations.shape[1:]:
      raise errors.UserError(
          f'a batch of sequences of {x.shape[1]} tokens behind one of {self.activations.shape[1]}: a method that '
          'searches on a sample of the sequences needs them equally long')
    return self.merged(SequenceSample(x, hash_ids(ids)))

  def merged(self, other: 'SequenceSample') -> 'SequenceSample':
    """With the sequences of both; as many as `self` holds."""
    hashes = jnp.concatenate([self.hashes, other.hashes])
    keep = jnp.argsort(hashes)[: self.hashes.shape[0]]
    activations = jnp.concatenate([self.activations, other.activations.astype(self.activations.dtype)])
    return SequenceSample(activations[keep], hashes[keep])

  def filled(self):
    """The activations, with the first sequence in every empty place: zeros would widen ranges taken from the whole."""
    return jnp.where(self.weights() > 0, self.activations, self.activations[:1])

  def weights(self):
    """float32 [sequences, 1, 1]: 1 for a sequence, 0 for a place that is still empty."""
    return (self.hashes != _NONE).astype(jnp.float32)[:, None, None]

  def mean_square(self, difference):
    """Mean over the sampled tokens of the squared `difference` [sequences, tokens, ...] summed over features."""
    squares = jnp.sum(jnp.square(difference.astype(jnp.float32)), axis=tuple(range(2, difference.ndim)))
    weights = self.weights()[..., 0]
    # Chosen, not multiplied: what a module makes of an empty place need not be finite.
    return jnp.sum(jnp.where(weights > 0, squares, 0.0)) / jnp.maximum(jnp.sum(weights) * squares.shape[1], 1)


def hash_ids(ids):
  """A bijection of uint32 that scrambles (the finalizer of MurmurHash3), never giving the value of an empty place."""
  x = jnp.asarray(ids).astype(jnp.uint32)
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    x = (x ^ (x >> shift)) * jnp.uint32(factor)
  return jnp.minimum(x ^ (x >> 16), _NONE - 1)
