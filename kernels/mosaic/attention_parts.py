"""Attention over some of the slots: what warpgroups and blocks pass on, and how it becomes that over all of them.

A part is three arrays, float32 [features, columns] in the layout of an accumulator: mixed values, not divided yet; the
score that their weights are relative to; and the sum of these weights. The last two are the same in all rows.
"""

from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from kernels.mosaic import clusters
from kernels.mosaic import tiles


def memory(features: int, columns: int):
  """Shared memory for a part of this block."""
  return plgpu.SMEM((3, features, columns), jnp.float32)


def store(part, smem) -> None:
  """Stores a part in its memory."""
  for i, array in enumerate(part):
    smem[i] = array


def load(smem):
  """The part in its memory."""
  return [tiles.load(smem.at[i], plgpu.Layout.WGMMA, optimized=False) for i in range(3)]


def mailbox(count: int, features: int, columns: int) -> clusters.Mailbox:
  """The memory for parts of as many other blocks."""
  return clusters.mailbox((count, 3, features * columns), jnp.float32)


def send(part, mail: clusters.Mailbox, index: int, block: int) -> None:
  """Sends a part to a block of the cluster, where it has this index."""
  for i, array in enumerate(part):
    clusters.send(array, mail.letters.at[index, i], mail.barrier, block)


def received(mail: clusters.Mailbox, own):
  """Waits for the parts of others, which are like this block's own, and returns them."""
  clusters.receive(mail)
  return [[clusters.load(mail.letters.at[i, j], array) for j, array in enumerate(own)]
          for i in range(len(mail.letters))]


def joined(one, other):
  """The part of the slots of both."""
  top = lax.max(one[1], other[1])
  scales = [jnp.exp2(part[1] - top) for part in (one, other)]
  mixed, total = (sum(scale * part[i] for scale, part in zip(scales, (one, other))) for i in (0, 2))
  return mixed, top, total
