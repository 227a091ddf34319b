"""Which configuration of a kernel runs a problem: measured ones where there are, else a rule.

Measured configurations are data, one file for each kind of device: `data/nvidia_h200.json`, written by
`python -m launch.benchmark kernels --sweep`. The rule behind them counts waves of tiles over the multiprocessors.
"""

import functools
import json
import math
import pathlib

from kernels import prepack
from kernels.mosaic import configs

_DATA = pathlib.Path(__file__).parent / 'data'
_FEW = 64


def choose(tokens: int, outputs: int, inputs: int, layout: prepack.Layout, device: str = 'NVIDIA H200'):
  """The configuration for a product of codes.

  Args:
    tokens, outputs, inputs: the problem.
    layout: of the weights.
    device: the kind of device whose measurements count.

  Returns:
    A `configs.Prefill` or a `configs.Decode`.
  """
  inputs = prepack.padded(inputs)
  return measured(device).get(key(tokens, outputs, inputs, layout)) or rule(tokens, outputs, inputs, layout)


def key(tokens: int, outputs: int, inputs: int, layout: prepack.Layout) -> tuple:
  """What measurements are filed under: tokens count in powers of two."""
  return layout.value, 1 << max(0, tokens - 1).bit_length(), outputs, inputs


@functools.cache
def measured(device: str) -> dict:
  """The measured configurations of a kind of device by `key`; none for a device that was not measured."""
  file = _DATA / f'{device.lower().replace(" ", "_")}.json'
  if not file.exists():
    return {}
  entries = json.loads(file.read_text(encoding='utf-8'))['entries']
  return {(e['layout'], e['tokens'], e['outputs'], e['inputs']): configs.parse(e['config']) for e in entries}


def rule(tokens: int, outputs: int, inputs: int, layout: prepack.Layout):
  """The configuration for a problem that nobody measured."""
  return _few(tokens, outputs, inputs, layout) if tokens <= _FEW else _many(tokens, outputs, inputs, layout)


def _few(tokens, outputs, inputs, layout):
  """Few tokens: enough blocks for every multiprocessor, and all of a block's memory in flight."""
  tile_m = min(_FEW, max(8, 1 << (tokens - 1).bit_length()))
  tile_k = 256 if inputs % 256 == 0 else 128
  blocks = math.ceil(outputs / configs.Decode.TILE_N)
  split = 1
  while split < 8 and 2 * split * blocks <= configs.CORES * 4 // 3 and inputs // tile_k >= 8 * split:
    split *= 2
  for warpgroups in (4, 2, 1):
    for stages in (4, 3, 2, 1):
      config = configs.Decode(tile_m, tile_k, stages, warpgroups, split)
      if config.shared_memory(layout) <= configs.SHARED_MEMORY:
        return config
  raise NotImplementedError(f'no configuration of a product of {tokens} tokens fits shared memory')


def _many(tokens, outputs, inputs, layout):
  """Many tokens: the tile that wastes the least time of the multiprocessors in the last wave and in its borders."""
  def cost(config):
    tiles = math.ceil(outputs / config.outputs) * math.ceil(tokens / config.tile_m)
    # The border of a tile costs what 48 of its tokens do: its inputs are read, its sums written.
    return math.ceil(tiles / configs.CORES) * (config.tile_n / 64) * (config.tile_m + 48)

  candidates = [configs.Prefill(tile_n=64, tile_m=tile_m) for tile_m in (256, 192, 128, 64)]
  candidates = [c.deepest(layout) for c in candidates]
  return min(candidates, key=cost)
