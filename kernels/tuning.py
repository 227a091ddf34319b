"""Which configuration of a kernel runs a problem: measured ones where there are, else a rule.

Measured configurations are data, one file for each kind of device: `data/nvidia_h200.json`, written by
`python -m launch.benchmark kernels --sweep`. The rule behind them counts waves of tiles over the multiprocessors.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import math
import pathlib
from typing import Any, NamedTuple

from kernels import dispatch
from kernels import layouts
from kernels.mosaic import configs

DATA = pathlib.Path(__file__).parent / 'data'
_FEW, _FEW_INPUTS = 64, 8192
# Of the inputs, what the last step may have beyond them: it costs no memory, but time of the tensor cores.
_MOST_BEYOND = 0.05
_forced = []


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


def choose(problem: Problem, device: str):
  """The configuration for a product of codes.

  Args:
    problem: the problem.
    device: the kind of device, as JAX names it, whose measurements count.

  Returns:
    A `configs.Prefill` or a `configs.Decode`. A measured one that does not fit the problem is passed over, as the log
    of `kernels` says once.

  Raises:
    NotImplementedError: what is forced, or else what the rule finds, does not fit the problem.
  """
  found = None if _forced else measured(device).get(key(problem))
  if found is not None:
    if (reason := misfit(problem, found)) is None:
      dispatch.say(logging.INFO, f'{problem}: {found}, as measured')
      return found
    dispatch.say(logging.WARNING, f'measured for {problem}: {found}, which is passed over: {reason}')
  config = (_forced[-1] if _forced else rule)(problem)
  if reason := misfit(problem, config):
    raise NotImplementedError(f'{config} does not fit {problem}: {reason}')
  dispatch.say(logging.INFO, f'{problem}: {config}, {"as asked for" if _forced else "by the rule"}')
  return config


def misfit(problem: Problem, config) -> str | None:
  """Why a configuration would not compute a problem, in words; None if it would."""
  prefill, outputs = isinstance(config, configs.Prefill), layouts.padded(problem.outputs)
  part = math.lcm(problem.group or 1, configs.LEAST_STEP)
  if config.tile_m not in range(8, (configs.Prefill if prefill else configs.Decode).MOST_TOKENS + 1, 8):
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
  if not prefill and (reason := _decode_misfit(problem, config)):
    return reason
  if config.float8 and (problem.group is None or not problem.four_bits or problem.layout is not layouts.Layout.INT4):
    return 'only groups of 4-bit codes by 4-bit codes are multiplied as 8-bit floating point'
  if (size := config.shared_memory(*problem.weights)) > configs.SHARED_MEMORY:
    return f'{size} bytes do not fit the {configs.SHARED_MEMORY} of shared memory'
  return None


def _decode_misfit(problem: Problem, config: configs.Decode) -> str | None:
  """What is wrong with runs of inputs in the rows of an instruction, or with who copies."""
  if config.fold not in (1, 2):
    return f'rows of an instruction hold 1 or 2 runs of inputs, not {config.fold}'
  if not config.copying and not config.shared:
    return 'a block whose warpgroups copy for themselves has no registers to take from one that copies'
  if config.fold > 1 and config.split > 1:
    return 'inputs are dealt out to rows of an instruction or to blocks of a cluster, not to both'
  if config.fold > 1 and problem.group is None and (problem.two_level or problem.layout is layouts.Layout.DINT4):
    return 'zero points and multipliers of outputs do not go into rows of 2 runs of inputs'
  return None


@contextlib.contextmanager
def forced(configuration: Callable[[Problem], Any]) -> Iterator[None]:
  """Within it, what is traced takes `configuration(problem)`: to measure, and to test one that is not the choice."""
  _forced.append(configuration)
  try:
    yield
  finally:
    _forced.pop()


def key(problem: Problem) -> Problem:
  """What measurements are filed under: tokens count in powers of two, and only groups have a body for 4-bit codes."""
  return problem._replace(tokens=1 << max(0, problem.tokens - 1).bit_length(),
                          four_bits=problem.four_bits and problem.group is not None)


@functools.cache
def measured(device: str) -> dict[Problem, Any]:
  """The measured configurations of a kind of device by `key`; none for a device that was not measured."""
  file = DATA / f'{device.lower().replace(" ", "_")}.json'
  if not file.exists():
    return {}
  entries = json.loads(file.read_text(encoding='utf-8'))['entries']
  return {Problem(**{**entry['problem'], 'layout': layouts.Layout(entry['problem']['layout'])}):
          configs.parse(entry['config']) for entry in entries}


def rule(problem: Problem):
  """The configuration for a problem that nobody measured."""
  few = problem.tokens <= _FEW or problem.layout is layouts.Layout.INT4_WIDE
  return _few(problem) if few else _many(problem)


def _few(problem: Problem):
  """Few tokens: enough blocks for every multiprocessor, and as much memory in flight as fits."""
  tile_m = min(_FEW, max(8, 1 << (problem.tokens - 1).bit_length()))
  wide = problem.layout is layouts.Layout.INT4_WIDE
  blocks = math.ceil(problem.outputs / configs.Decode.TILE_N)
  integers = problem.layout in (layouts.Layout.INT4, layouts.Layout.ROWS)
  # To unpack plain codes twice costs little; that of others limits long sums, which the blocks of a cluster share.
  twice = integers and not problem.two_level or problem.inputs <= _FEW_INPUTS
  if problem.tokens <= tile_m == _FEW and 2 * blocks <= configs.CORES and twice:
    # Two blocks read and unpack the same weights, which costs less than a cluster's exchange of sums.
    tile_m, blocks = _FEW // 2, 2 * blocks
  config = configs.Decode(tile_m, warpgroups=2)
  # Long steps: what a step costs beside its bytes is then paid less often.
  tile_k = next((size for size in (512, 256) if problem.inputs % size == 0), 128)
  # Operands of 16 bits, tables of dINT and sums of small groups take many registers.
  plain = integers and problem.scaled in (None, 128)
  found = None
  if blocks > configs.CORES:
    # While one block of a multiprocessor begins or ends, another's memory is in flight.
    ways = [(512, 2)] * plain + [(512, 1)] * (plain or wide) + [(256, 1)]
    several = (_deepest(problem, dataclasses.replace(config, warpgroups=warpgroups, shared=True, copying=False),
                        (tile_k,), range(2, 9), min(configs.MOST_BLOCKS, math.ceil(blocks / configs.CORES)))
               for tile_k, warpgroups in ways)
    found = next(filter(None, several), None)
  elif 2 * blocks <= configs.CORES and tile_m < _FEW and problem.scaled != 32:
    # More blocks without a cluster. Each reads the activations of all inputs, which for more tokens costs too much.
    halves = dataclasses.replace(config, fold=2, shared=plain)
    found = _deepest(problem, halves, (512, 256), range(2, 9))
  if found is not None:
    return found
  split = 1
  while split < 8 and 2 * split * blocks <= configs.CORES * 4 // 3 and problem.inputs // tile_k > 16 * split:
    split *= 2
  # Long steps of one warpgroup before shorter ones of two: of 64 tokens a tile, 12.4 us and 13.8 for 4096 x 14336.
  for size, warpgroups in itertools.product((tile_k, 256, 128), (2, 1)):
    # One stage would leave a warpgroup without the next step while it works on this one.
    found = _deepest(problem, dataclasses.replace(config, warpgroups=warpgroups, split=split), (size,),
                     range(2, 3 if wide else 5))
    if found is not None:
      return found
  raise NotImplementedError(f'no configuration of a product of {problem.tokens} tokens fits shared memory')


def _deepest(problem: Problem, config: configs.Decode, sizes: Sequence[int], depths: range, beside: int = 1):
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
    if (stages <= max(depths.start, steps) and misfit(problem, found) is None
        and found.shared_memory(*problem.weights) <= configs.shared_memory_beside(beside)):
      return found
  return None


def _many(problem: Problem):
  """Many tokens: the tile that wastes the least time of the multiprocessors in the last wave and in its borders."""
  def cost(config):
    tiles = math.ceil(problem.outputs / config.outputs) * math.ceil(problem.tokens / config.tile_m)
    # The border of a tile costs what 48 of its tokens do: its inputs are read, its sums written.
    return math.ceil(tiles / configs.CORES) * (config.tile_n / 64) * (config.tile_m + 48)

  # Sums in float32 beside those of a group leave registers for 128 tokens, and masked weights of small ones for fewer.
  sizes = (256, 192, 128, 64) if problem.scaled is None else (128, 64) if problem.scaled > 32 else (64,)
  return min((_tile(problem, tile_m) for tile_m in sizes), key=cost)


def _tile(problem: Problem, tile_m: int) -> configs.Prefill:
  """Many tokens: the steps of a tile of so many tokens."""
  # Of two tiles of 128 tokens and groups of 128, a third stage makes the compiler spill a register; it would bring 1 %.
  most = 2 if problem.scaled == tile_m == 128 and tile_m < problem.tokens <= 2 * tile_m else 6
  deepest = lambda tile_k: configs.Prefill(tile_m=tile_m, tile_k=tile_k).deepest(*problem.weights, most=most)
  # What a step costs beside its bytes is paid less often in longer ones, of which packed weights leave room for enough.
  if problem.layout is not layouts.Layout.ROWS:
    longer = (deepest(tile_k) for tile_k in (512, 256) if problem.inputs % tile_k == 0)
    if found := next((config for config in longer if config.stages > 2), None):
      return found
  # With two groups a step, the sums of the first are scaled while the second is multiplied.
  return deepest(256 if problem.scaled == 128 and problem.inputs % 256 == 0 else 128)
