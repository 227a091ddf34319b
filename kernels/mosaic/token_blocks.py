"""How a quantizer's blocks take tokens: what a thread loads of one, and how many blocks have registers to stay."""

import math

from kernels.mosaic import configs

# Registers of a thread beside those of its token and of vectors, about.
_OTHER_REGISTERS = 34
# Blocks of a transform by whose both products operands are the same (see `token_transform`).
_ALIKE = (256, 512, 4096, 8192)


def loads(features: int, group_size: int, block: int) -> tuple[int, int]:
  """(neighbors that a thread loads at once, loads in a row: see `token_registers.Places`).

  A transform likes as many loads in a row as there are, so that its blocks do not go through shared memory, or, if they
  have to, with four of them through less of it.
  """
  def fits(run):
    return features % run == 0 and not (run % group_size and group_size % run)

  def hardship(found):
    width, inner = found
    return 0 if block <= 32 * width * inner else 2 - (inner == 4)

  fitting = [(width, inner) for width in (8, 4, 2) for inner in ((4, 2, 1) if block > 1 else (1,))
             if fits(128 * width) and fits(128 * width * inner)]
  return min(fitting, key=hardship)


def resident(features: int, rows: int, vectors: int, itemsize: int, block: int, exchanged: bool) -> tuple[int, int]:
  """(blocks of a multiprocessor, vectors in registers) where blocks keep vectors and take tokens in turn; 0 for none.

  A block has registers for a token in float32, the next one as it is, and some vectors; shared memory for the others.

  Args:
    features: of a token.
    rows: that are read for each token.
    vectors: float32 [K] that stay for all tokens.
    itemsize: bytes of what is read.
    block: of a transform, or 1.
    exchanged: whether a transform has shared memory for a token.
  """
  numbers = features // 128

  def blocks(held):
    registers = numbers * (1 + rows * itemsize / 4 + held) + _OTHER_REGISTERS
    if block > 1:  # a compiler works at several tiles at a time, where there are many, or vectors beside
      registers += 0.6 * max(0, numbers * (1 + (held > 0)) - 32) - (2 if block in _ALIKE and itemsize == 2 else 0)
    found = configs.REGISTERS // (8 * math.ceil(registers / 8)) if registers < 256 else 0
    room = lambda count: 4 * features * (vectors - held + exchanged) <= configs.shared_memory_beside(count)
    return next((count for count in range(found, 1, -1) if room(count)), 0)

  # As many vectors in registers as fit, or one fewer if some stay there and that brings another block: to read more of
  # them for every token takes longer than the block is worth.
  most = next((held for held in range(vectors, -1, -1) if blocks(held)), 0)
  return max((blocks(held), held) for held in (most, most - 1 if most > 1 else most))
