"""The rule for configurations that nobody measured: blocks enough for the memory, and few waves of tiles."""

from collections.abc import Sequence
import dataclasses
import functools
import itertools
import math

from kernels import layouts
from kernels import problems
from kernels.mosaic import configs

_FEW, _FEW_INPUTS, _ALONE = 64, 8192, 4096


# Asked for each product that is not traced: all tiles of many tokens take 1.6 ms.
@functools.cache
def configuration(problem: problems.Problem):
  """The configuration for a problem that nobody measured; NotImplementedError if none fits shared memory."""
  few = problem.tokens <= _FEW or problem.layout is layouts.Layout.INT4_WIDE
  return _few(problem) if few else _many(problem)


def _few(problem: problems.Problem):
  """Few tokens: enough blocks for every multiprocessor, and as much memory in flight as is worth it."""
  wide, plain = problem.layout is layouts.Layout.INT4_WIDE, _plain(problem)
  blocks = math.ceil(problem.outputs / configs.Decode.tile_n)
  # Up to 16 tokens, or 32 where their registers hold no scales of groups, warps multiply them at once.
  most = 16 if problem.scaled is not None or wide or problem.layout is layouts.Layout.ROWS else 32
  if found := _cluster(problem, blocks, most):
    return found
  # To read and unpack the same weights twice costs two blocks less than a cluster's exchange of short sums. What takes
  # more to unpack limits long ones; others that are long come here where blocks are too few for a cluster.
  twice = plain or problem.layout is layouts.Layout.ROWS or problem.inputs <= _FEW_INPUTS
  halved = most < problem.tokens <= _FEW and 2 * blocks <= configs.CORES and twice
  # As few as are there: copies of rows beyond the last take time.
  tile_m = min(_FEW, configs.whole_tile(problem.tokens))
  if halved:
    tile_m, blocks = configs.whole_tile(math.ceil(problem.tokens / 2)), 2 * blocks
  config = configs.Decode(tile_m, warpgroups=2)
  found = None
  if blocks > configs.CORES:
    found = _one_wave(problem, config) or _beside(problem, config, blocks)
  elif 2 * blocks <= configs.CORES and tile_m <= most and problem.scaled != 32:
    found = _folded(problem, config)
  elif halved and plain:
    found = _deepest(problem, _copying_their_own(config, 4), (256,), range(2, 4))
  elif 2 * blocks > configs.CORES and not halved:
    found = _apart(problem, config)
  if found is not None:
    return found
  # Long steps: what a step costs beside its bytes is then paid less often.
  tile_k = next((size for size in (512, 256) if problem.inputs % size == 0), 128)
  split = 1
  while split < 8 and 2 * split * blocks <= configs.CORES and problem.inputs // tile_k > 16 * split:
    split *= 2
  # Long steps of one warpgroup before shorter ones of two: of 64 tokens a tile, 12.4 us and 13.8 for 4096 x 14336.
  for size, warpgroups in itertools.product((tile_k, 256, 128), (2, 1)):
    # One stage would leave a warpgroup without the next step while it works on this one.
    found = _deepest(problem, dataclasses.replace(config, warpgroups=warpgroups, split=split), (size,),
                     range(2, 3 if wide else 5))
    if found is not None:
      return found
  raise NotImplementedError(f'no configuration of a product of {problem.tokens} tokens fits shared memory')


def _plain(problem: problems.Problem) -> bool:
  """Whether weights are codes of 4 bits with a scale an output, which take least to unpack."""
  return problem.layout is layouts.Layout.INT4 and problem.scaled is None and not problem.two_level


def _cluster(problem: problems.Problem, blocks: int, most: int) -> configs.Decode | None:
  """17 to 64 tokens by two blocks that have half of the inputs each, or None where others are faster, or none fits.

  Each weight is read and unpacked once, and multiplied by all tokens, which takes an instruction of a warpgroup no
  longer than half of them. Of single blocks there have to be enough for a fourth of the multiprocessors, at most half.
  """
  dint = problem.layout is layouts.Layout.DINT4
  short = problem.inputs <= _ALONE and (_plain(problem) or problem.tokens <= most)
  if (not dint and problem.layout is not layouts.Layout.INT4 or problem.tokens <= 16 or short
      or not configs.CORES // 4 < blocks <= configs.CORES // 2):
    return None
  config = configs.Decode(
      configs.whole_tile(problem.tokens), warpgroups=2, split=2, shared=True, copying=dint)
  if _plain(problem) and problem.tokens > 32:
    return _deepest(problem, config, (256,), range(2, 5))
  long = _deepest(problem, config, (512,), range(2, 3))
  # dINT's groups take less time by long steps of one warpgroup.
  return long if dint or long is not None else _deepest(problem, config, (256,), range(2, 5))


def _folded(problem: problems.Problem, config: configs.Decode) -> configs.Decode | None:
  """Tokens that warps multiply, by two runs of the inputs, in the rows of a block or in two blocks."""
  wide = problem.layout is layouts.Layout.INT4_WIDE
  # One warpgroup that has all steps in flight needs no others' sums, and nobody who copies.
  alone = problem.layout is layouts.Layout.INT4 and problem.scaled is None and problem.inputs <= _ALONE
  # dINT's tables change with the group, and with fewer inputs a block less often. So do the scales of products with
  # plain activations, of which warps multiply up to 8 tokens faster.
  cluster = problem.scaled is not None and problem.inputs > _FEW_INPUTS and (
      problem.layout is layouts.Layout.DINT4 or wide and config.tile_m > 8)
  way = dict(split=2) if cluster else dict(fold=2)
  return _deepest(
      problem, dataclasses.replace(config, warpgroups=1 if alone else 2, shared=True, copying=not alone, **way),
      _long(problem), range(2, 5 if alone else 3))


def _apart(problem: problems.Problem, config: configs.Decode) -> configs.Decode | None:
  """More than half of the multiprocessors have a block each, which has more in flight for those that have none."""
  layout = problem.layout
  # Small groups were measured with few tokens by plain codes only.
  few = layout is layouts.Layout.INT4 and problem.scaled == 64 and config.tile_m <= 16
  if problem.scaled in (32, 64) and not few:
    return None
  # dINT's warpgroups, which take the longest to unpack a step, would start the next copies late.
  if layout is not layouts.Layout.DINT4:
    config = _copying_their_own(config, 2)
  found = None
  # Three gain by 16-bit activations, and by 33 to 48 tokens, of which two have fewer bytes on their way.
  if layout is layouts.Layout.INT4_WIDE:
    found = _deepest(problem, _copying_their_own(config, 3), (512,), range(2, 3))
  elif _plain(problem) and config.tile_m == 48:
    found = _deepest(problem, _copying_their_own(config, 3), (256,), range(2, 4))
  return (found or _deepest(problem, config, (512,), range(2, 4))
          or _deepest(problem, config, (256,), range(2, 5)))


def _one_wave(problem: problems.Problem, config: configs.Decode) -> configs.Decode | configs.Prefill | None:
  """Weights of 4 bits in tiles of 128 outputs, if each multiprocessor has one at most."""
  if math.ceil(problem.outputs / 128) > configs.CORES or problem.layout is layouts.Layout.ROWS:
    return None
  if config.tile_m > _FEW // 2:  # tiles of 48 take less time in blocks beside each other
    tile = _tile(problem, _FEW)
    fits = config.tile_m == _FEW and problem.scaled in (None, 128) and problems.misfit(problem, tile) is None
    return tile if fits else None
  # More tokens, which are dINT's, take longer, and do so in two warpgroups.
  return _deepest(
      problem, dataclasses.replace(config, warpgroups=1 if config.tile_m <= 8 else 2, shared=True, tile_n=128),
      _long(problem), range(2, 4))


def _copying_their_own(config: configs.Decode, warpgroups: int) -> configs.Decode:
  """The same by so many warpgroups, each of which starts its own copies, and which leave registers to other blocks."""
  return dataclasses.replace(config, warpgroups=warpgroups, shared=True, copying=False)


def _long(problem: problems.Problem) -> tuple[int, ...]:
  """Inputs of a step, the best first: scales of many small groups at once take more registers than there are."""
  return (512, 256) if problem.scaled in (None, 128) else (256,)


def _beside(problem: problems.Problem, config: configs.Decode, blocks: int) -> configs.Decode | None:
  """Several of all `blocks` on a multiprocessor: while one begins or ends, another's memory is in flight."""
  packed = problem.layout is not layouts.Layout.ROWS
  small = packed and config.tile_m < _FEW
  long = small or not packed and problem.scaled in (None, 128)
  # Of small steps few are enough: more blocks do more than deeper ones.
  return _deepest(
      problem, _copying_their_own(config, 1), (512, 256) if long else (256,),
      range(2, 4) if small else range(2, 9), min(configs.MOST_BLOCKS, math.ceil(blocks / configs.CORES)))


def _deepest(problem: problems.Problem, config: configs.Decode, sizes: Sequence[int], depths: range, beside: int = 1):
  """The configuration with the first of `sizes` as its step of which enough are in flight, and with as many as fit.

  Args:
    problem: the problem.
    config: the rest of the configuration.
    sizes: inputs of a step.
    depths: numbers of stages.
    beside: blocks of threads that a multiprocessor has at the same time.

  Returns:
    The configuration, or None if none fits.
  """
  for tile_k, stages in itertools.product(sizes, reversed(depths)):
    found = dataclasses.replace(config, tile_k=tile_k, stages=stages)
    steps = math.ceil(problem.inputs / (config.fold * tile_k * config.warpgroups * config.split))
    if (stages <= max(depths.start, steps) and problems.misfit(problem, found) is None
        and found.shared_memory(*problem.weights) <= configs.shared_memory_beside(beside)):
      return found
  return None


def _many(problem: problems.Problem):
  """Many tokens: the tile that wastes the least time of the multiprocessors in the last wave and in its borders."""
  def cost(config):
    tiles = math.ceil(problem.outputs / config.outputs) * math.ceil(problem.tokens / config.tile_m)
    # The border of a tile costs what so many of its tokens do: its weights are unpacked, its sums written. A warpgroup
    # alone has half the outputs, and leaves the tensor cores idle while it unpacks, or scales the sums of groups.
    border = 96 if problem.layout is layouts.Layout.DINT4 and problem.scaled is None else 48
    alone = 0.6 if problem.scaled is None else 0.7
    return math.ceil(tiles / configs.CORES) * (config.tile_m + border) * (1 if config.warpgroups > 1 else alone)

  sizes = range(problem.most_tokens, 32, -16)
  return min((_tile(problem, tile_m, warpgroups) for warpgroups in (2, 1) for tile_m in sizes), key=cost)


def _tile(problem: problems.Problem, tile_m: int, warpgroups: int = 2) -> configs.Prefill:
  """Many tokens: the steps of a tile of so many tokens."""
  # Of two tiles of 128 tokens and groups of 128, a third stage makes the compiler spill a register; it would bring 1 %.
  spilling = warpgroups > 1 and problem.scaled == tile_m == 128 and tile_m < problem.tokens <= 2 * tile_m
  deepest = lambda tile_k: configs.Prefill(
      tile_m=tile_m, tile_k=tile_k, warpgroups=warpgroups).deepest(*problem.weights, most=2 if spilling else 6)
  # What a step costs beside its bytes is paid less often in longer ones, of which packed weights leave room for enough.
  # A warpgroup alone also waits for what is copied while it unpacks, and wants more of them.
  if problem.layout is not layouts.Layout.ROWS or warpgroups == 1:
    longer = (deepest(tile_k) for tile_k in (512, 256) if problem.inputs % tile_k == 0)
    if found := next((config for config in longer if config.stages > 4 - warpgroups), None):
      return found
  # With two groups a step, the sums of the first are scaled while the second is multiplied.
  return deepest(256 if problem.scaled == 128 and problem.inputs % 256 == 0 else 128)
