"""What a launcher says while it works: one parseable line per interval, a live bar on a terminal, tables at the end."""

import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

import jax

from jaxquant import terminal
from jaxquant.calibration import driver
from jaxquant.report import page
from jaxquant.report import tables

_BAR_SECONDS = 0.2


class Printer:
  """Prints lines in the first process."""

  def __init__(self):
    self._first, self._bar = jax.process_index() == 0, False

  def __call__(self, line: str) -> None:
    """A line on standard output."""
    self._print(line, sys.stdout)

  def error(self, line: str) -> None:
    """A line on standard error."""
    self._print(line, sys.stderr)

  def bar(self, fraction: float, text: str) -> None:
    """A bar that the next line replaces, on a terminal only."""
    if self._first and sys.stderr.isatty():
      filled = int(30 * fraction)
      # What a terminal has wrapped, it does not erase; nor is its last column to be trusted.
      shown = f'[{"#" * filled}{"." * (30 - filled)}] {text}'[:shutil.get_terminal_size().columns - 1]
      sys.stderr.write(terminal.CLEARED + shown)
      sys.stderr.flush()
      self._bar = True

  def _print(self, line, stream):
    if self._first:
      if self._bar:
        sys.stderr.write(terminal.CLEARED)
        self._bar = False
      print(line, file=stream, flush=True)


class Steps:
  """Turns the loop's metrics into records and lines."""

  def __init__(
      self, say: Printer, steps: int, tokens_per_step: int, memory: Callable[[], int],
      timed: tuple[float, int] = (0.0, 0)):
    """Counts from what earlier launches took.

    Args:
      say: prints.
      steps: in all.
      tokens_per_step: in the global batch.
      memory: gives the bytes in use.
      timed: that of the launch which is continued.
    """
    self._say, self._steps, self._tokens, self._memory = say, steps, tokens_per_step, memory
    self._timed, self._drawn = tuple(timed), 0.0

  @property
  def timed(self) -> tuple[float, int]:
    """Seconds of all logged steps, and how many these are: what is compiled, and measurements, are left out."""
    return self._timed

  @property
  def throughput(self) -> float | None:
    """Tokens per second over the steps that are `timed`."""
    seconds, steps = self._timed
    return self._tokens * steps / seconds if seconds else None

  def record(self, step: int, metrics: dict[str, Any]) -> dict[str, Any]:
    """Prints the line of a step and returns its record; takes `seconds` and `steps` since the last one."""
    metrics = dict(metrics)
    seconds, steps = metrics.pop('seconds'), metrics.pop('steps')
    if steps:
      self._timed = self._timed[0] + seconds, self._timed[1] + steps
    speed = self._tokens * steps / seconds if steps and seconds else self.throughput
    eta = (self._steps - step) * self._tokens / speed if speed else None
    record = {'step': step, **metrics, 'tokens_per_second': speed, 'eta_seconds': eta, 'memory_bytes': self._memory()}
    line = f'step {step}/{self._steps} {step / self._steps:.1%} loss {metrics["loss"]:.4f}'
    if metrics['cross_entropy'] != metrics['loss']:
      line += f' cross_entropy {metrics["cross_entropy"]:.4f}'
    if 'kurtosis' in metrics:
      line += f' kurtosis {metrics["kurtosis"]:.3f}'
    line += f' lr {metrics["learning_rate"]:.3g}'
    if speed:
      line += f' tokens/s {speed:,.0f} ETA {_duration(eta)}'
    self._say(f'{line} memory {record["memory_bytes"] / 1e9:.2f}G')
    return record

  def bar(self, step: int) -> None:
    """Moves the bar, a few times a second at most."""
    if time.monotonic() - self._drawn > _BAR_SECONDS:
      speed = self.throughput
      eta = f' ETA {_duration((self._steps - step) * self._tokens / speed)}' if speed else ''
      self._say.bar(step / self._steps, f'step {step}/{self._steps}{eta}')
      self._drawn = time.monotonic()


def blocks(
    say: Printer, log: Callable[[dict[str, Any]], None], done: str = 'calibrated') -> Callable[[driver.Progress], None]:
  """What the driver reports to: a line and a record for each block that is `done`, a bar in between; warnings once."""
  under_way: list[driver.Progress] = []
  ended = [0, 0.0]  # blocks, and seconds up to the last one
  warned = set()  # texts

  def end():
    progress, work = under_way[0], done
    if progress.work == 'restored':
      work, took = 'restored', {}
    else:
      took = {'seconds': progress.seconds - ended[1]}
    ended[:] = ended[0] + 1, progress.seconds
    say(f'{work} {_named(progress)} {progress.done / progress.total:.0%} ETA {_eta(progress)}')
    log({'kind': 'block', 'step': ended[0], 'path': progress.block, 'work': work, **took, 'errors': _errors(progress)})

  def report(progress: driver.Progress) -> None:
    if under_way and under_way[0].block != progress.block:
      end()
    under_way[:] = [progress]
    for path, text in progress.warnings.items():
      if text not in warned:
        say.error(f'warning: {path}: {text}')
      warned.add(text)
    say.bar(progress.done / progress.total,
            f'{progress.done}/{progress.total} {_named(progress)} {progress.work} ETA {_eta(progress)}')
    if progress.done == progress.total:
      end()

  return report


def finish(workdir, results: dict[str, Any], say: Printer) -> None:
  """Writes results and report, and prints the tables."""
  workdir.write_results(results)
  for metric in ('perplexity', 'accuracy', 'normalized_accuracy'):
    for dataset in tables.datasets(results['evaluations'], metric):
      say('')
      say(tables.format_text(tables.precision_table(results['evaluations'], dataset, metric)))
  if workdir.writes:
    say(f'\nreport: {page.write_report(workdir.path)}')


def _duration(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  return f'{minutes}m{seconds:02d}s' if minutes else f'{seconds}s'


def _named(progress: driver.Progress) -> str:
  return progress.block or 'the head'


def _eta(progress: driver.Progress) -> str:
  """Of what is left, by what this run has done itself: restoring the work of an earlier one takes next to nothing."""
  own, left = progress.done - progress.restored, progress.total - progress.done
  return _duration(progress.seconds / own * left if left else 0) if own or not left else 'unknown'


def _errors(progress: driver.Progress) -> dict[str, dict[str, float]]:
  """The mean over a block's linears or sites of each error that a method recorded, by method: before and after."""
  found: dict[str, dict[str, list[float]]] = {}
  for methods in progress.decisions.values():
    for method, entry in methods.items():
      for field, value in entry.items():
        if 'error' in field and isinstance(value, float):
          found.setdefault(method, {}).setdefault(field, []).append(value)
  return {method: {field: sum(values) / len(values) for field, values in fields.items()}
          for method, fields in found.items()}
