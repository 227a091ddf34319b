"""What blocks of a cluster send one another: numbers of registers, straight into shared memory that expects them.

A block says itself how many bytes it expects, before any come, and who sends has nothing to say: an arrival at another
block's barrier waits until all that its thread has stored is seen there, which takes longer than the numbers do.
They lie as the threads have them (`thread_memory`).
"""

from typing import Any, NamedTuple

from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith
from jax.extend.mlir.dialects import vector
import jax.numpy as jnp

from kernels.mosaic import thread_memory
from kernels.mosaic import threads


class Mailbox(NamedTuple):
  """Shared memory for what a block gets, or references to it.

  Attributes:
    letters: numbers of 32 bits, [..., numbers of a letter], each letter an array's, of a multiple of 512.
    barrier: completes once, when all letters are there.
  """

  letters: Any
  barrier: Any


def mailbox(shape: tuple[int, ...], dtype) -> Mailbox:
  """The memory of a mailbox for letters of this shape."""
  return Mailbox(plgpu.SMEM(shape, dtype), plgpu.SMEM((2,), jnp.int32))


def expect(mail: Mailbox) -> None:
  """Makes the mailbox ready. All threads of all blocks of the cluster do this first, and once."""
  size = 4 * mail.letters.size

  @plgpu.inline_mgpu(arg_types=(plgpu.RefType(),))
  def run(ctx, barrier):
    del ctx
    first = arith.cmpi(arith.CmpIPredicate.eq, utils.thread_idx(), threads.constant(0))
    _ptx('''{
        .reg .pred first;
        setp.ne.b32 first, $1, 0;
        @first mbarrier.init.shared.b64 [$0], 1;
        @first fence.mbarrier_init.release.cluster;
        @first mbarrier.arrive.expect_tx.shared.b64 _, [$0], $2;
        barrier.cluster.arrive.relaxed;
        }''', [_address(barrier), arith.extui(threads.i32(), first), threads.constant(size)])

  run(mail.barrier)


def meet() -> None:
  """Waits for all blocks of the cluster to be ready. Threads that send do this once, before they do."""
  @plgpu.inline_mgpu()
  def run(ctx):
    del ctx
    _ptx('barrier.cluster.wait.acquire;', [])

  run()


def send(array, letter, barrier, block) -> None:
  """Sends the registers of a warpgroup.

  Args:
    array: of 32-bit numbers in the layout of an accumulator.
    letter: reference to this block's memory where the other one has it in its own, [numbers].
    barrier: that of the mailbox, likewise.
    block: which of the cluster gets it, an index along its only axis.
  """
  @plgpu.inline_mgpu(
      arg_types=(plgpu.Layout.WGMMA, plgpu.RefType(), plgpu.RefType(), plgpu.Layout.WG_SPLAT))
  def run(ctx, array, letter, barrier, block):
    del ctx
    there = lambda address: _ptx(
        'mapa.shared::cluster.u32 $0, $1, $2;', [address, block.registers.item()], threads.i32())
    place, barrier = there(_address(letter)), there(_address(barrier))
    words = [utils.bitcast(number, threads.i32()) for number in threads.elements(array.registers.flat)]
    for first in range(0, len(words), thread_memory.QUAD):
      offset = arith.muli(thread_memory.place(threads.number(), first, thread_memory.QUAD), threads.constant(4))
      _ptx('st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [$0], {$1, $2, $3, $4}, [$5];',
           [arith.addi(place, offset), *words[first : first + thread_memory.QUAD], barrier])

  run(array, letter, barrier, jnp.int32(block))


def receive(mail: Mailbox) -> None:
  """Waits until all letters are there."""
  @plgpu.inline_mgpu(arg_types=(plgpu.RefType(),))
  def run(ctx, barrier):
    del ctx
    _ptx('''{
        .reg .pred there;
        again${:uid}:
        mbarrier.try_wait.parity.shared::cta.b64 there, [$0], 0, 10000000;
        @!there bra.uni again${:uid};
        }''', [_address(barrier)])

  run(mail.barrier)


def load(letter, like):
  """The array of a letter, of the shape, dtype and layout, an accumulator's, that another one has."""
  layout = plgpu.Layout.WGMMA

  @plgpu.inline_mgpu(
      arg_types=(plgpu.RefType(), layout),
      return_type=plgpu.ShapeDtypeStruct(like.shape, like.dtype, layout=layout))
  def run(ctx, letter, like):
    del ctx
    registers, pair = like.registers.copy(), ir.VectorType.get((2,), like.mlir_dtype)
    numbers = [number for first in range(0, 2 * registers.size, thread_memory.QUAD)
               for number in thread_memory.load(letter, threads.number(), first, thread_memory.QUAD)]
    registers.flat = [vector.from_elements(pair, numbers[i : i + 2]) for i in range(0, len(numbers), 2)]
    return mgpu.FragmentedArray(_registers=registers, _layout=like.layout, _is_signed=like.is_signed)

  return run(letter, like)


def _address(ref):
  """The address of a reference to shared memory, a word."""
  return utils.llvm.ptrtoint(threads.i32(), utils.memref_ptr(ref))


def _ptx(text: str, words, result=None):
  """Instructions that take words, and return one of type `result`, if that is given."""
  constraints = ['=r'] * (result is not None) + ['r'] * len(words)
  return utils.llvm.inline_asm(
      result or ir.Type.parse('!llvm.void'), words, text, ','.join(constraints), has_side_effects=True)
