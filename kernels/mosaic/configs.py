"""How the kernels cut a product: frozen data, without any of Mosaic, so that tuning can reason about it."""

import dataclasses
import math
from typing import Any, ClassVar

from kernels import layouts

# Multiprocessors of an H100 or H200 (SXM). A constant, since a kernel is also lowered where there is no device to ask.
CORES = 132
# Bytes of shared memory that a block of threads may have, less what barriers and alignment take.
SHARED_MEMORY = 232_448 - 2048
# Bytes that a multiprocessor has for its blocks, each of which takes some beside its own.
_OF_MULTIPROCESSOR, _OF_BLOCK = 233_472, 1024 + 2048
# And beside what others of its cluster send: what waits for it, in a buffer of a whole kilobyte.
_OF_BLOCK_IN_CLUSTER = 1024
# Registers of a multiprocessor for each of the 128 threads of a warpgroup, and blocks of threads that it has some for.
REGISTERS, MOST_BLOCKS = 65_536 // 128, 4
# Tokens of a tile up to which instructions of single warps take less time than those of warpgroups, by two runs of the
# inputs, and by one. Weights of 8 bits, warpgroups read from shared memory.
_OF_WARPS = {2: dict.fromkeys(layouts.Layout, 32),
             1: {layouts.Layout.ROWS: 0, layouts.Layout.INT4: 8, layouts.Layout.INT4_WIDE: 8, layouts.Layout.DINT4: 16}}
# Inputs that a step has at least: a row of operands is contiguous over 64 bytes.
LEAST_STEP = 64


def shared_memory_beside(blocks: int) -> int:
  """Bytes of shared memory of each of so many blocks of threads on a multiprocessor, less what is taken beside it."""
  return _OF_MULTIPROCESSOR // blocks - _OF_BLOCK


def whole_tile(tokens: int) -> int:
  """The least tile for so many tokens: what instructions of warpgroups multiply integers by."""
  part = 8 if tokens <= 32 else 16
  return math.ceil(tokens / part) * part


def whole_row(tokens: int) -> int:
  """Of so many tokens' 32-bit numbers, what a row in shared memory has: copies land on multiples of 128 bytes."""
  return math.ceil(tokens / 32) * 32


def chunks(tokens: int) -> int:
  """Parts of a tile's results that are on their way to memory at once: one of few tokens, so that more stages fit."""
  return 1 if tokens <= 64 else 2


def _per_byte(layout: layouts.Layout) -> int:
  return 1 if layout is layouts.Layout.ROWS else 2


def _of_token(layout: layouts.Layout) -> int:
  """Bytes of an activation."""
  return 2 if layout is layouts.Layout.INT4_WIDE else 1


def _scales(outputs: int, tokens: int, groups: float, two_level: bool) -> int:
  """Bytes of what so many groups have beside their codes, for which there are buffers of whole kilobytes.

  That is a multiplier for each output, or scales, offsets or zero points, and row sums.
  """
  of = lambda numbers: math.ceil(4 * numbers * groups / 1024) * 1024
  return of(outputs) if two_level else 2 * of(outputs) + of(whole_row(tokens))


@dataclasses.dataclass(frozen=True)
class Prefill:
  """Many tokens; one block of threads runs on each multiprocessor.

  Attributes:
    tile_n: outputs of a warpgroup, 64 or 128.
    tile_m: tokens of a tile, a `whole_tile` up to 256.
    tile_k: inputs of a step, of which whole steps make all inputs and whole groups a step: mostly 128, 256 or 512.
    stages: steps in flight.
    warpgroups: that compute; one more copies.
    panel: tiles of outputs that are finished for all tokens before the next, so that they stay in the cache.
    float8: multiply 4-bit codes as fp8 numbers, whose sums need no conversion before they are scaled; with groups only.
    cluster: 2 for pairs of blocks with the same tokens, each of which reads half of them from memory for both.
  """

  MOST_TOKENS: ClassVar[int] = 256

  tile_n: int = 64
  tile_m: int = 256
  tile_k: int = 128
  stages: int = 4
  warpgroups: int = 2
  panel: int = 8
  float8: bool = False
  cluster: int = 1

  @property
  def outputs(self) -> int:
    """Outputs of a tile."""
    return self.tile_n * self.warpgroups

  def shared_memory(self, layout: layouts.Layout, group: int | None = None, two_level: bool = False) -> int:
    """Bytes of shared memory for weights of a layout with scales, or multipliers, for each `group` inputs."""
    step = (self.tile_m * _of_token(layout) + self.outputs // _per_byte(layout)) * self.tile_k
    scales = _scales(self.outputs, self.tile_m, self.stages * self.tile_k / group if group else 0, two_level)
    return self.stages * step + scales + self.warpgroups * chunks(self.tile_m) * self.tile_n * 64 * 2

  def deepest(
      self, layout: layouts.Layout, group: int | None = None, two_level: bool = False, most: int = 6) -> 'Prefill':
    """The same with as many stages as fit, from 1 up to `most`."""
    deeper = [dataclasses.replace(self, stages=stages) for stages in range(2, most + 1)]
    fitting = [config for config in deeper if config.shared_memory(layout, group, two_level) <= SHARED_MEMORY]
    return fitting[-1] if fitting else dataclasses.replace(self, stages=1)


@dataclasses.dataclass(frozen=True)
class Decode:
  """Few tokens.

  Attributes:
    tile_m: tokens of a tile, a `whole_tile` up to 64.
    tile_k: inputs of a step; the last one may go a little beyond all inputs where there are no groups.
    stages: steps of a warpgroup in flight.
    warpgroups: that compute.
    split: blocks of threads that share the inputs, up to 8.
    float8: as above.
    fold: 1, or 2 for two runs of the inputs in the rows of a block, which so has 32 outputs, and of which there are
      twice as many; a step has `tile_k` inputs of each run. Where warps multiply, without `split` only.
    shared: whether a block takes the registers that it needs, so that another one may be on its multiprocessor, and not
      all that there are.
    copying: whether one warpgroup more starts the copies of all. Without it each starts its own behind each step, and
      more blocks have registers on a multiprocessor; then `shared` has to be.
    tile_n: rows of weights of a block: 64, or 128 where warps multiply one run of the inputs.
  """

  MOST_TOKENS: ClassVar[int] = 64

  tile_m: int = 16
  tile_k: int = 256
  stages: int = 4
  warpgroups: int = 4
  split: int = 1
  float8: bool = False
  fold: int = 1
  shared: bool = False
  copying: bool = True
  tile_n: int = 64

  @property
  def outputs(self) -> int:
    """Outputs of a block."""
    return self.tile_n // self.fold

  def of_warps(self, layout: layouts.Layout) -> bool:
    """Whether warps multiply for themselves (see `mma`)."""
    return self.tile_m <= _OF_WARPS[self.fold][layout]

  @property
  def partial_sums(self) -> int:
    """Tiles of sums that others read: of a block's warpgroups, of its first one only where it is folded."""
    return self.warpgroups - (self.fold == 1)

  @property
  def shares(self) -> int:
    """Blocks of a cluster that finish equal shares of the tokens, whole eights of them."""
    return math.gcd(self.tile_m // 8, self.split)

  def shared_memory(self, layout: layouts.Layout, group: int | None = None, two_level: bool = False) -> int:
    """Bytes of shared memory for weights of a layout with scales, or multipliers, for each `group` inputs."""
    step = (self.fold * self.tile_m * _of_token(layout) + self.tile_n // _per_byte(layout)) * self.tile_k
    steps = self.stages * self.warpgroups
    scales = _scales(
        self.tile_n, self.fold * whole_row(self.tile_m), steps * self.tile_k / group if group else 0, two_level)
    partial = 4 * self.tile_n * self.tile_m
    others = (self.split - 1) * partial // self.shares + _OF_BLOCK_IN_CLUSTER * (self.split > 1)
    return steps * step + scales + partial * max(1, self.partial_sums) + others


_KINDS = {'prefill': Prefill, 'decode': Decode}


def parse(description: dict[str, Any]):
  """A configuration from what `describe` returned."""
  fields = dict(description)
  return _KINDS[fields.pop('kernel')](**fields)


def describe(config) -> dict[str, Any]:
  """A configuration as data for a file."""
  return {'kernel': {kind: name for name, kind in _KINDS.items()}[type(config)], **dataclasses.asdict(config)}
