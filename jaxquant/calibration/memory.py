"""How much memory of a device a calibration needs, known from shapes alone, before it starts.

Counted is what the driver holds on to; what a compiled program needs in passing comes on top. So a calibration that is
refused could not have run, and one that is not may still run out of memory.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxquant import errors
from jaxquant.calibration import aliasing
from jaxquant.calibration import driver
from jaxquant.calibration import plan as plans
from jaxquant.calibration import programs
from jaxquant.calibration import sites
from jaxquant.calibration import stores
from jaxquant.calibration import transform as transforms

MODEL, FINISHED, WINDOW = 'model', 'finished blocks', 'window of blocks'
STATISTICS, LEARNING, STREAMS = 'statistics', 'learning', 'streams'

_REMEDIES = {
    MODEL: 'use a device with more memory, or a source that loads the model block by block',
    FINISHED: 'use a device with more memory, or fewer bits',
    WINDOW: 'let the window hold fewer blocks',
    STATISTICS: 'let a step be sequential or own fewer linears, so that it observes less at a time',
    LEARNING: 'let the window hold fewer blocks',
    STREAMS: 'calibrate on fewer or shorter sequences, or on more devices',
}


class Estimate(NamedTuple):
  """Bytes on each device at the moment when most are needed.

  Attributes:
    parts: by what takes them: `model`, the float tree where it is in memory as a whole; `finished blocks`;
      `window of blocks`, the current one as it becomes, and as it was where it is not part of `model`; `statistics`,
      the state of the transform with the largest one; `learning`, what is trained, its gradients and the optimizer's
      state; `streams`, the activations between blocks.
  """

  parts: dict[str, int]

  @property
  def total(self) -> int:
    """The sum of the parts."""
    return sum(self.parts.values())

  def __str__(self):
    parts = ', '.join(f'{name} {_text(size)}' for name, size in self.parts.items() if size)
    return f'at least {_text(self.total)} a device: {parts}'

  def check(self, limit: int | None) -> None:
    """Raises `UserError` naming the largest part and a remedy if `limit` bytes a device (None: unknown) are too few."""
    if limit is not None and self.total > limit:
      largest = max(self.parts, key=self.parts.get)
      raise errors.UserError(
          f'calibration needs {_text(self.total)} on a device of {_text(limit)}, the largest part, '
          f'{_text(self.parts[largest])}, for the {largest}: {_REMEDIES[largest]}')


def estimate(
    params: Any, model: sites.StagedModel, steps: Sequence[plans.Step | plans.Learning], batches: Sequence[Any], *,
    window: int = 1) -> Estimate:
  """What `driver.run` with these arguments needs.

  Arrays count by their shardings, and what is made of them as replicated, but for the streams, which are split as the
  batches are. Where a method decides among candidates, the first one counts.

  Args:
    params, model, steps, window: as for `driver.run`; the arrays of `params` may be ShapeDtypeStructs.
    batches: token ids, or ShapeDtypeStructs.

  Raises:
    UserError: what the driver would refuse for the shapes.
  """
  resident = 0 if isinstance(params, stores.Source) else _bytes(params)
  source = params if isinstance(params, stores.Source) else stores.InMemory(params, model)
  abstract = source.abstract()
  made = plans.make(abstract, model, steps)
  source = stores.InMemory(abstract, model)
  needed = frozenset().union(*map(plans.streams, steps, made))
  root = source.load('')
  tokens = [jax.ShapeDtypeStruct(batch.shape, batch.dtype) for batch in batches]
  embedded = [jax.eval_shape(model.embed, root, ids) for ids in tokens]
  stream = sum(int(_bytes(x) * _share(batch)) for x, batch in zip(embedded, batches))
  peak = Estimate({MODEL: resident, WINDOW: 0 if resident else _bytes(root), STREAMS: stream * bool(needed)})
  finished, known = 0, {}
  for blocks in plans.windows(model, window):
    before = {path: source.load(path) for path, _ in blocks}
    claims = tuple(tuple(plan[path]) for plan in made for path, _ in blocks)
    leaves, structure = jax.tree.flatten(tuple(before.values()))
    key = claims, structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    if key not in known:
      known[key] = _Window(steps, made, blocks, before, embedded[:1])
    window_made = known[key]
    candidate = Estimate({
        MODEL: resident, FINISHED: finished, WINDOW: window_made.new + (0 if resident else _bytes(before)),
        STATISTICS: window_made.statistics, LEARNING: window_made.learning,
        STREAMS: stream * (len(needed) + window_made.copies)})
    peak = max(peak, candidate, key=lambda estimated: estimated.total)
    finished += window_made.new if resident else _bytes(window_made.current)
  return peak


class _Window:
  """The steps on a window of abstract blocks.

  Attributes:
    current: the rewritten subtrees, by path. Arrays that no step touched are the very objects of the float ones.
    new: bytes of all other arrays.
    statistics, learning: bytes of the largest state of a transform, and of what a learner trains.
    copies: streams that a step holds beside those of the run.
  """

  def __init__(self, steps, made, blocks, before, inputs):
    self.blocks, self.before, self.current, self.inputs = blocks, before, dict(before), inputs
    self.statistics, self.learning, self.copies = 0, 0, 0
    for step, plan in zip(steps, made):
      plan = {path: plan[path] for path, _ in blocks}
      if isinstance(step, plans.Learning):
        self._learn(plan)
        continue
      self.copies = max(self.copies, len(plans.streams(step, plan)) * (len(blocks) > 1))
      for path, block in blocks:
        for factory, claim in plan[path]:
          self._apply(plans.transform(factory, claim), path, block)
    old = set(map(id, jax.tree.leaves(before)))
    self.new = _bytes([leaf for leaf in jax.tree.leaves(self.current) if id(leaf) not in old])

  def _apply(self, transform, path, block):
    params, example = self.current[path], None
    if transform.needs_data:
      driver.check_batches(self.inputs)
      x = self.inputs[0]
      ids = jax.ShapeDtypeStruct(x.shape[:1], np.int32)
      teacher = (self.before[path], x) if transform.needs_teacher else (None, ids)
      example = programs.observed(block).eval_shape(params, x, ids, *teacher)
    state = jax.eval_shape(lambda params: transform.init(params, example), params)
    self.statistics = max(self.statistics, _bytes(state))
    params, record, decisions = programs.compiled(transform, block)[1].eval_shape(params, state)
    first = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype).item(), decisions)
    record = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), record)  # numbers: a method may look at what it found
    rewrite = aliasing.Jit(lambda params: transform.rewrite(params, record, first))
    self.current[path] = rewrite.eval_shape(params)

  def _learn(self, plan):
    for factory in dict.fromkeys(factory for pairs in plan.values() for factory, _ in pairs):
      claims = (dict(plan[path]).get(factory, transforms.Claim((), block)) for path, block in self.blocks)
      learner = plans.transform(factory, tuple(claims))
      prepared = aliasing.Jit(learner.prepare).eval_shape(tuple(self.current.values()))
      free = jax.tree.map(lambda leaf, yes: leaf if yes else None, prepared, learner.trainable(prepared))
      self.learning = max(self.learning, 2 * _bytes(free) + _bytes(jax.eval_shape(learner.optimizer.init, free)))
      self.current.update(zip(self.current, aliasing.Jit(learner.finish).eval_shape(prepared)[0]))
      self.copies = max(self.copies, 1)


def _bytes(tree):
  """Bytes of a tree on each device."""
  size = lambda leaf: leaf.sharding.shard_shape(leaf.shape) if getattr(leaf, 'sharding', None) else leaf.shape
  return sum(int(np.prod(size(leaf), dtype=np.int64)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _share(batch):
  """The share of a batch that is on each device."""
  return _bytes(batch) / (batch.size * batch.dtype.itemsize)


def _text(size):
  return f'{size / 1e9:.2f} GB' if size >= 1e9 else f'{size / 1e6:.2f} MB'
