"""The products that kernels are configured for, and which configurations fit one."""

import math
from typing import NamedTuple

from kernels import layouts
from kernels.mosaic import configs

# Of the inputs, what the last step may have beyond them: it costs no memory, but time of the tensor cores.
_MOST_BEYOND = 0.05


class Problem(NamedTuple):
  """What a configuration depends on.

  Attributes:
    tokens, outputs, inputs: of the product; `inputs` is padded.
    layout: of the weights.
    group: None for one scale an output; else the inputs that share scales, or a multiplier: 128, 64 or 32.
    four_bits: whether the activations' codes have at most 4 bits, and those of the weights are integers, not dINT's:
      then fp8 products are exact.
    two_level: whether groups have multipliers (kernels.integer_weights), so that sums have one scale an output.
  """

  tokens: int
  outputs: int
  inputs: int
  layout: layouts.Layout
  group: int | None = None
  four_bits: bool = False
  two_level: bool = False

  @property
  def weights(self) -> tuple[layouts.Layout, int | None, bool]:
    """What of the weights decides how much shared memory a configuration takes: its arguments."""
    return self.layout, self.group, self.two_level

  @property
  def scaled(self) -> int | None:
    """The inputs whose sums share scales, None for all."""
    return None if self.two_level else self.group

  @property
  def most_tokens(self) -> int:
    """Tokens of a tile of many that registers hold the sums of: fewer beside those of a group, or masked weights."""
    return {None: configs.Prefill.MOST_TOKENS, 128: 128, 64: 112}.get(self.scaled, 64)


def misfit(problem: Problem, config) -> str | None:
  """Why a configuration would not compute a problem, in words; None if it would."""
  prefill, outputs = isinstance(config, configs.Prefill), layouts.padded(problem.outputs)
  part = math.lcm(problem.group or 1, configs.LEAST_STEP)
  if not 0 < config.tile_m == configs.whole_tile(config.tile_m) <= config.MOST_TOKENS:
    return f'no tile has {config.tile_m} tokens'
  if config.tile_k < 1 or config.tile_k % part:
    return f'{part} inputs do not divide a step of {config.tile_k}'
  step = config.tile_k if prefill else config.tile_k * config.fold
  if (beyond := -problem.inputs % step) and (prefill or problem.group or beyond > problem.inputs * _MOST_BEYOND):
    return f'steps of {step} inputs do not divide {problem.inputs}'
  if prefill and problem.layout is layouts.Layout.INT4_WIDE:
    return 'plain activations have no kernel for many tokens'
  if prefill and (config.tile_n not in (64, 128) or outputs % (config.outputs * config.cluster)):
    return f'{config.cluster} x {config.warpgroups} tiles of {config.tile_n} outputs do not divide {outputs}'
  if not prefill and (reason := _decode_misfit(config, problem.layout)):
    return reason
  if config.float8 and (problem.group is None or not problem.four_bits or problem.layout is not layouts.Layout.INT4):
    return 'only groups of 4-bit codes by 4-bit codes are multiplied as 8-bit floating point'
  if (size := config.shared_memory(*problem.weights)) > configs.SHARED_MEMORY:
    return f'{size} bytes do not fit the {configs.SHARED_MEMORY} of shared memory'
  return None


def _decode_misfit(config: configs.Decode, layout: layouts.Layout) -> str | None:
  """What is wrong with the rows of a block, or with who copies."""
  if (config.tile_n, config.fold) not in ((64, 1), (64, 2), (128, 1)):
    return f'a block has 64 or 128 rows of one run of inputs, or 64 of two, not {config.tile_n} of {config.fold}'
  if (config.tile_n, config.fold) != (64, 1) and not config.of_warps(layout):
    return (f'only warps multiply more than 64 rows or one run of inputs, and not {config.tile_m} tokens by '
            f'{layout.value}')
  if not config.copying and not config.shared:
    return 'a block whose warpgroups copy for themselves has no registers to take from one that copies'
  if config.fold > 1 and config.split > 1:
    return 'inputs are dealt out to the rows of a block or to blocks of a cluster, not to both'
  return None
