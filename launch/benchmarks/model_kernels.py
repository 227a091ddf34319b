"""What an evaluation of a model is made of: the kernels that it launches, by name."""

import collections
from collections.abc import Iterable
import re
from typing import NamedTuple

_LEAST = 0.1  # launches an evaluation: what is launched more seldom prepares the measurement
_OURS = '_mosaic_gpu_kernel'  # what ends names of kernels of ours, which say what they are for
_NUMBERED = re.compile(r'(_\d+)+$')  # how XLA tells programs' kernels of one kind apart


class Kernel(NamedTuple):
  """Kernels of one name.

  Attributes:
    name: without the numbers that XLA appends to those of its own.
    launches: in an evaluation, on average.
    seconds: of all these launches together.
  """

  name: str
  launches: float
  seconds: float


def by_name(launches: Iterable[tuple[str, float]], evaluations: int) -> list[Kernel]:
  """The kernels of an evaluation, those that take longest first.

  Args:
    launches: (name, seconds) of each kernel, as `kernel_timing.launches` returns them.
    evaluations: of the model, that they were launched by.
  """
  times = collections.defaultdict(list)
  for name, seconds in launches:
    times[name.removesuffix(_OURS) if name.endswith(_OURS) else _NUMBERED.sub('', name)].append(seconds)
  found = [Kernel(name, len(each) / evaluations, sum(each) / evaluations) for name, each in times.items()]
  return sorted((each for each in found if each.launches >= _LEAST), key=lambda each: -each.seconds)


def table(kernels: list[Kernel]) -> str:
  """A line for each, in microseconds, and one for all."""
  lines = [f'{"kernel":44}{"launches":>10}{"each":>10}{"all":>10}']
  lines += [f'{each.name[:43]:44}{each.launches:10.1f}{1e6 * each.seconds / each.launches:10.2f}'
            f'{1e6 * each.seconds:10.1f}' for each in kernels]
  launches, seconds = (sum(getattr(each, name) for each in kernels) for name in ('launches', 'seconds'))
  return '\n'.join([*lines, f'{"together":44}{launches:10.1f}{"":10}{1e6 * seconds:10.1f}'])
