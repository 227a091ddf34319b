"""Sums of a cluster, of which each block has those of its own inputs: blocks send one another shares of the tokens."""

import functools

from jax.experimental import pallas as pl
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend.mlir.dialects import arith
import jax.numpy as jnp

from kernels.mosaic import clusters
from kernels.mosaic import partial_sums
from kernels.mosaic import threads

_LAYOUT = plgpu.Layout.WGMMA


def mailbox(blocks: int, shares: int, shape: tuple[int, int], dtype) -> clusters.Mailbox:
  """The memory for what a block gets from each other of a cluster, whose blocks have sums of this shape."""
  return clusters.mailbox((blocks - 1, shape[0] * shape[1] // shares), dtype)


def exchange(sums, mail: clusters.Mailbox, block, shares: int):
  """Sends shares of a block's sums to the blocks that finish them.

  Args:
    sums: int32 or float32 [rows, tokens] in the layout of an accumulator.
    mail: the mailbox.
    block: the index of this block in its cluster.
    shares: the first blocks of the cluster, which have equal shares of the tokens, whole eights of them, in order.

  Returns:
    A function of no arguments, for blocks that have a share: waits, and returns the cluster's sums of it, [rows, tokens
    / shares].
  """
  parts = _parts(sums, shares)
  for i, part in enumerate(parts):
    letter = mail.letters.at[block - (block > i).astype(jnp.int32)]
    pl.when(block != i)(functools.partial(clusters.send, part, letter, mail.barrier, i))

  def total():
    own = _chosen(parts, block)
    clusters.receive(mail)
    return partial_sums.add_up(own, mail.letters, 1, len(mail.letters))

  return total


def _parts(sums, count: int):
  """Equal parts of the tokens, each [rows, tokens / count]."""
  rows, shape = len(sums), (len(sums), sums.shape[1] // count)
  kind = plgpu.ShapeDtypeStruct(shape, sums.dtype, layout=_LAYOUT)

  @plgpu.inline_mgpu(arg_types=(_LAYOUT,), return_type=[kind] * count)
  def split(ctx, array):
    del ctx
    form = _LAYOUT.to_mgpu()
    registers = array.registers.reshape(rows // 64, count, -1)
    return [mgpu.FragmentedArray(_registers=registers[:, i].reshape(form.registers_shape(shape)), _layout=form,
                                 _is_signed=array.is_signed) for i in range(count)]

  return split(sums)


def _chosen(parts, index):
  """That of the parts which has this index, or the last one."""
  kind = plgpu.ShapeDtypeStruct(parts[0].shape, parts[0].dtype, layout=_LAYOUT)

  @plgpu.inline_mgpu(arg_types=(plgpu.Layout.WG_SPLAT, *[_LAYOUT] * len(parts)), return_type=kind)
  def choose(ctx, index, *parts):
    del ctx
    *first, last = parts
    registers = last.registers.copy()
    for i, part in enumerate(first):
      this = arith.cmpi(arith.CmpIPredicate.eq, index.registers.item(), threads.constant(i))
      registers.flat = [arith.select(this, a, b) for a, b in zip(part.registers.flat, registers.flat)]
    return mgpu.FragmentedArray(_registers=registers, _layout=last.layout, _is_signed=last.is_signed)

  return choose(index, *parts)
