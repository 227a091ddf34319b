"""Taps: named points where a statistic is read from a running model.

A tap is a function applied at every point whose name matches its pattern. What it returns, not the activation, leaves
the module, so a scalar statistic stays cheap under rematerialization. Points are named by the path of the module and
what is read there:

  <linear>/output            what a linear layer returns
  <site>/input               an activation before its input specification
  <site>/quantized_input     the same after it, as the product sees it
  <attention>/<operand>, <attention>/quantized_<operand>     likewise for its `query`, `key` and `value`

where a site is a linear layer, or the parent of several linears that read the same activation.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from flax import linen as nn

from jaxquant.layers import inputs

COLLECTION = 'taps'
_SPECIFIED = ('input', 'query', 'key', 'value')
_POINTS = ('output', *_SPECIFIED, *(f'quantized_{point}' for point in _SPECIFIED))


class Tap(NamedTuple):
  """A statistic to read.

  Attributes:
    pattern: regular expression that the whole name of a point must match.
    function: activation -> pytree of arrays.
    depth: parts of a name, from its front, that the pattern leaves out.
  """

  pattern: str
  function: Callable[[Any], Any]
  depth: int = 0


def within(taps: tuple[Tap, ...], path: tuple[str, ...], places: Iterable[str]) -> tuple[Tap, ...]:
  """What taps read in the module at `path`, said without its name: modules that are read alike get equal taps.

  Args:
    taps: for the whole model.
    path: of a module.
    places: paths within it that have points.
  """
  names = [f'{place}/{point}' for place in places for point in _POINTS]
  found = []
  for tap in taps:
    if read := [name for name in names if re.fullmatch(tap.pattern, '/'.join((*path[tap.depth :], name)))]:
      found.append(Tap('|'.join(map(re.escape, read)), tap.function, len(path)))
  return tuple(found)


def record(module: nn.Module, taps: tuple[Tap, ...], point: str, activation: Callable[[], Any]) -> None:
  """Applies the first matching tap to `activation()` at `point` of `module`, if the collection is being recorded."""
  if not taps or not module.is_mutable_collection(COLLECTION) or module.is_initializing():
    return
  for tap in taps:
    if re.fullmatch(tap.pattern, '/'.join((*module.path[tap.depth :], point))):
      module.sow(COLLECTION, point, tap.function(activation()), init_fn=lambda: None, reduce_fn=lambda _, new: new)
      return


def prepare(
    module: nn.Module, taps: tuple[Tap, ...], specification: dict | None, x, point: str = 'input') -> inputs.Activation:
  """`inputs.prepare` for the site, or the operand called `point`, of `module`, with its two tap points."""
  record(module, taps, point, lambda: inputs.prepare(None, x).values)
  prepared = inputs.prepare(specification, x)
  record(module, taps, f'quantized_{point}', lambda: prepared.values)
  return prepared


def by_point(collection: Any, prefix: str = '') -> dict[str, Any]:
  """The recorded collection as {name of the point: statistic}."""
  points = {}
  for key, value in collection.items():
    name = f'{prefix}/{key}' if prefix else key
    if key in _POINTS:
      points[name] = value
    else:
      points.update(by_point(value, name))
  return points
