"""Tries configurations of kernels and files the fastest ones."""

import functools
import itertools
import json
import math
import pathlib
from typing import Any

import jax

from kernels import layouts
from kernels import problems
from kernels import rule
from kernels import tuning
from kernels.mosaic import configs
from launch import workdir
from launch.benchmarks import kernel_columns
from launch.benchmarks import kernel_programs
from launch.benchmarks import kernel_timing


# Inputs of a step.
_STEPS = 128, 256, 512
# Of many tokens: `tile_n`, `warpgroups` and `cluster`; and sums of a tile that registers hold.
_TILES = (64, 1, 1), (64, 2, 1), (64, 2, 2), (64, 3, 1), (128, 2, 1), (128, 2, 2)
_MOST_SUMS = 64 * 256 * 2
# Of few tokens: `split`, `fold`, `shared`, `copying` and `tile_n`.
_BLOCKS = ((1, 1, False, True, 64), (1, 1, True, True, 64), (1, 1, True, False, 64), (1, 2, False, True, 64),
           (1, 2, True, True, 64), (1, 2, True, False, 64), (2, 1, False, True, 64), (2, 1, True, True, 64),
           (2, 1, True, False, 64), (4, 1, False, True, 64), (1, 1, True, True, 128), (1, 1, True, False, 128))


def sweep(shapes, names, repetitions: int, file: str | None) -> list[dict[str, Any]]:
  """Measures every configuration of every problem; returns all times, and adds the best to `file`."""
  results, best = [], {}
  for problem, name in itertools.product(shapes, names):
    column, asked = kernel_columns.COLUMNS[name], []

    def note(question):
      asked.append(question)
      return rule.configuration(question)

    calls = column.calls(problem)
    with tuning.forced(note):
      default = rule.configuration((jax.eval_shape(calls[0]), asked[0])[1])
    times = []
    tried = [default, *(config for config in candidates(asked[0]) if config != default)]
    for config, multiply in kernel_programs.compiled(
        (config, functools.partial(_lowered, column, calls[0].args, config)) for config in tried):
      try:
        program = multiply()
        seconds = kernel_timing.seconds([lambda call=call: program(*call.args) for call in calls], repetitions)
      except (NotImplementedError, ValueError, RuntimeError) as error:
        results.append({'column': name, **problem._asdict(), 'config': configs.describe(config),
                        **kernel_programs.failure(error)})
        continue
      times.append((seconds, config))
      results.append({'column': name, **problem._asdict(), 'config': configs.describe(config), 'seconds': seconds})
    if not times:
      print(f'{name} {problem.outputs} x {problem.inputs} at {problem.tokens}: no configuration ran: '
            f'{results[-1]["error"]}', flush=True)
      continue
    times.sort(key=lambda pair: pair[0])
    best[tuning.key(asked[0])] = times[0]
    of_rule = [f'{1e6 * s:.2f}' for s, c in times if c == default]
    print(f'{name} {problem.outputs} x {problem.inputs} at {problem.tokens}: rule {"".join(of_rule) or "-"}, best '
          + '; '.join(f'{1e6 * s:.2f} {_short(c)}' for s, c in times[:3]), flush=True)
    if file:
      _add(pathlib.Path(file), best)
  return results


def _lowered(column, operands, config):
  """The program in a configuration, to be compiled."""
  # A new function for each, since jit knows nothing of the configuration that a trace was made with.
  multiply = jax.jit(lambda *operands: column.multiply(*operands))  # pylint: disable=unnecessary-lambda
  with tuning.forced(lambda _: config):
    return multiply.lower(*operands)


def candidates(problem: problems.Problem) -> list[Any]:
  """Configurations that fit the problem."""
  found = []
  float8 = (False, True) if problem.group and problem.four_bits else (False,)
  parts = lambda *counts: {configs.whole_tile(math.ceil(problem.tokens / count)) for count in counts}
  if problem.tokens <= 128:
    few = {min(size, configs.Decode.MOST_TOKENS) for size in parts(*((1, 2) if problem.tokens > 16 else (1,)))}
    # The longest two steps: shorter ones have won nothing.
    longest = [size for size in _STEPS if problem.inputs % size == 0][-2:] or _STEPS[:1]
    for tile_m, tile_k, stages, warpgroups, (split, fold, shared, copying, tile_n), f8 in itertools.product(
        sorted(few), longest, (2, 3, 4), (1, 2, 3, 4), _BLOCKS, float8):
      found.append(configs.Decode(tile_m, tile_k, stages, warpgroups, split, f8, fold, shared, copying, tile_n))
  most, chosen = problem.most_tokens, rule.configuration(problem).tile_m
  # Tiles of one wave or few, whole powers of two, and those beside the rule's.
  sizes = parts(1, 2, 3, 4) | {64, 128, 192, 256, most, chosen - 16, chosen, chosen + 16}
  sizes = sorted(size for size in sizes if 32 < size <= min(most, configs.whole_tile(problem.tokens)))
  for tile_m, tile_k, (tile_n, warpgroups, cluster), panel, f8 in itertools.product(
      sizes, _STEPS, _TILES, (4, 16) if problem.tokens > most else (8,), float8):
    if tile_n * tile_m * warpgroups <= _MOST_SUMS and problem.layout is not layouts.Layout.INT4_WIDE:
      config = configs.Prefill(tile_n, tile_m, tile_k, 1, warpgroups, panel, f8, cluster).deepest(*problem.weights)
      if config.stages > 1:
        found.append(config)
  return [config for config in found if problems.misfit(problem, config) is None]


def _short(config) -> str:
  return '/'.join(str(value) for value in configs.describe(config).values())


def _add(file: pathlib.Path, best) -> None:
  """Adds the best configurations to a file of measured ones; those of the same problems are replaced."""
  entries = json.loads(file.read_text(encoding='utf-8'))['entries'] if file.exists() else []
  describe = lambda problem: {**problem._asdict(), 'layout': problem.layout.value}
  kept = [entry for entry in entries if all(entry['problem'] != describe(problem) for problem in best)]
  added = [{'problem': describe(problem), 'config': configs.describe(config), 'microseconds': round(1e6 * seconds, 2)}
           for problem, (seconds, config) in best.items()]
  device = json.dumps(jax.local_devices()[0].device_kind)
  lines = ',\n'.join(json.dumps(entry) for entry in kept + added)  # one a line, so that changes can be read
  workdir.write_text(file, f'{{"device": {device}, "entries": [\n{lines}\n]}}\n')
