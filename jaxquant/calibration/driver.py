"""The driver: runs transforms over a model, block by block, so that only a window of blocks is held at a time.

Two streams flow through the blocks, as far as the steps ask for them: what the full-precision blocks put out, and what
the quantized ones do. The calibration batches may be sharded over devices along their first axis: statistics are
computed under jit on global arrays, so that any number of devices gives the same ones.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxquant import errors
from jaxquant.calibration import learning
from jaxquant.calibration import plan as plans
from jaxquant.calibration import sites
from jaxquant.calibration import stores
from jaxquant.calibration import transform as transforms
from jaxquant.numerics import trees

Step, Learning = plans.Step, plans.Learning


class Result(NamedTuple):
  """What a run returns.

  Attributes:
    params: the rewritten tree.
    decisions: {path of the linear or site: its record and decisions, as Python numbers}.
  """

  params: Any
  decisions: dict[str, dict]


class Progress(NamedTuple):
  """A unit of work that is done.

  Attributes:
    block: path of its block (the first of a window); '' for what follows the layers.
    work: names that were rewritten, or 'restored' for a block that an earlier run had finished.
    done, total: units done and to do.
    seconds: since the start.
  """

  block: str
  work: str
  done: int
  total: int
  seconds: float


def run(
    params: Any, model: sites.StagedModel, steps: Sequence[Step | Learning], batches: Sequence[Any], *,
    window: int = 1, store: stores.Store | None = None, report: Callable[[Progress], None] = lambda progress: None,
) -> Result:
  """Quantizes a model.

  Args:
    params: the whole tree, or a `stores.Source` that loads it block by block; every weight must be finite.
    model: its blocks.
    steps: applied in order within each window; each observes what the ones before it made.
    batches: token ids, int32 [sequences, tokens] each.
    window: consecutive blocks that are held, and learn, together.
    store: keeps finished blocks, from which a run that was interrupted continues.
    report: called after each transform of each block.

  Raises:
    UserError: a rule that wins nothing, a name without owner, no batches where one is needed.
    NonFiniteError: non-finite weights or activations, by path.
  """
  source = params if isinstance(params, stores.Source) else stores.InMemory(params, model)
  return _Run(source, model, steps, batches, store or stores.Nowhere(), report).over(window)


class _Run:
  """One run: what does not change from block to block, and the streams."""

  def __init__(self, source, model, steps, batches, store, report):
    self.source, self.model, self.steps, self.store, self.report = source, model, steps, store, report
    self.plans = plans.make(source.abstract(), model, steps)
    self.started, self.done = time.monotonic(), 0
    self.total = sum(len(pairs) for plan in self.plans for pairs in plan.values())
    ends = [sum(len(b) for b in batches[: i + 1]) for i in range(len(batches))]
    self.ids = [jnp.arange(end - len(b), end, dtype=jnp.int32) for end, b in zip(ends, batches)]
    root = source.load('')
    trees.check_finite(root)
    embedded = [jax.jit(model.embed)(root, batch) for batch in batches]
    self.streams = {name: list(embedded) for name in plans.STREAMS if name in self._needed()}

  def _needed(self):
    made = [(step, plans.transform(factory, claim)) for step, plan in zip(self.steps, self.plans)
            if isinstance(step, Step) for pairs in plan.values() for factory, claim in pairs]
    needed = {step.stream for step, _ in made} | ({'float'} if any(t.needs_teacher for _, t in made) else set())
    return needed | (set(plans.STREAMS) if any(isinstance(step, Learning) for step in self.steps) else set())

  def over(self, window: int) -> Result:
    layers = [pair for pair in self.model.blocks if pair[0]]
    rest = [pair for pair in self.model.blocks if not pair[0]]
    windows = [layers[i : i + window] for i in range(0, len(layers), window)] + [[pair] for pair in rest]
    finished, decisions = {}, {}
    for number, blocks in enumerate(windows):
      before = {path: self.source.load(path) for path, _ in blocks}
      for path, subtree in before.items():
        _check_finite(path, subtree)
      after, made = self._restored(blocks) or self._rewritten(blocks, before)
      for path, subtree in after.items():
        self.store.save(path, subtree, made[path])
        decisions.update({_join(path, name): entry for name, entry in made[path].items()})
      finished.update(after)
      if number + 1 < len(windows):
        self._advance(blocks, {'float': before, 'quantized': after})
    return Result(self.source.assemble(finished), decisions)

  def _restored(self, blocks):
    """The blocks as an earlier run finished them, or None."""
    found = {path: self.store.finished(path) for path, _ in blocks}
    if any(entry is None for entry in found.values()):
      return None
    units = sum(len(plan[path]) for plan in self.plans for path in found)
    self._report(blocks[0][0], 'restored', units)
    return {path: entry[0] for path, entry in found.items()}, {path: entry[1] for path, entry in found.items()}

  def _rewritten(self, blocks, before):
    """(subtrees, decisions) of the blocks by path, after all steps."""
    current, decisions = dict(before), {path: {} for path, _ in blocks}
    for step, plan in zip(self.steps, self.plans):
      if isinstance(step, Learning):
        self._learn(blocks, plan, before, current, decisions)
        continue
      streams = dict(self.streams)
      for i, (path, block) in enumerate(blocks):
        for factory, claim in plan[path]:
          current[path], record = self._apply(
              plans.transform(factory, claim), block, current[path], before[path], step.stream, streams, path)
          decisions[path] = merged(decisions[path], record)
          self._report(path, ', '.join(claim.names))
        if i + 1 < len(blocks):
          trees_of = {'float': before[path], 'quantized': current[path]}
          streams = {name: _forwarded(block, trees_of[name], xs) for name, xs in streams.items()}
    return current, decisions

  def _apply(self, transform, block, params, teacher, stream, streams, path):
    """One transform on one block: (params, {name: record and decisions})."""
    observe, search = _compiled(transform, block)
    teacher = teacher if transform.needs_teacher else None
    batches = list(zip(streams.get(stream, ()), self.ids, streams['float'] if transform.needs_teacher else self.ids))
    example = _observed(block).eval_shape(params, *batches[0][:2], teacher, batches[0][2]) if batches else None
    state = transform.init(params, example)
    if jax.tree.leaves(state):
      if not batches:
        raise errors.UserError('calibration needs at least one batch of tokens')
      for x, ids, teacher_x in batches:
        state = observe(state, params, x, ids, teacher, teacher_x)
      _check_finite(path, state, 'activations: ')
    params, record, decisions = search(params, state)
    record, decisions = jax.device_get((record, decisions))
    decisions = jax.tree.map(lambda x: x.item(), decisions)
    params = transform.rewrite(params, record, decisions)
    return params, merged(jax.tree.map(lambda x: x.tolist(), record), decisions)

  def _learn(self, blocks, plan, before, current, decisions):
    """Trains what a step of learning claims in the window."""
    factories = {factory for path, _ in blocks for factory, _ in plan[path]}
    for factory in factories:
      claims = [next((c for f, c in plan[path] if f is factory), transforms.Claim((), block)) for path, block in blocks]
      learner = plans.transform(factory, tuple(claims))
      targets = self.streams['float']
      for path, block in blocks:
        targets = _forwarded(block, before[path], targets)
      learned, record = learning.fit(
          learner, tuple(block for _, block in blocks), tuple(current[path] for path, _ in blocks),
          self.streams['quantized'], targets)
      for (path, _), subtree, entry in zip(blocks, learned, record):
        current[path], decisions[path] = subtree, merged(decisions[path], entry)
      self._report(blocks[0][0], ', '.join(name for claim in claims for name in claim.names), len(blocks))

  def _advance(self, blocks, subtrees):
    for path, block in blocks:
      self.streams = {name: _forwarded(block, subtrees[name][path], xs) for name, xs in self.streams.items()}

  def _report(self, block, work, units=1):
    self.done += units
    self.report(Progress(block, work, self.done, self.total, time.monotonic() - self.started))


def merged(first: dict, second: dict) -> dict:
  """Two {name: entries}, entries of the second added to those of the first."""
  return {name: {**first.get(name, {}), **second.get(name, {})} for name in {**first, **second}}


@functools.cache
def _compiled(transform: transforms.Transform, block: sites.Block):
  """Jitted (observe, search), one pair for all blocks that share a `Block` and a transform."""
  observe = lambda state, *arguments: transform.observe(state, _observed(block)(*arguments))
  return jax.jit(observe), jax.jit(transform.search)


@functools.cache
def _observed(block: sites.Block):
  """Jitted (params, inputs, ids, teacher's params or None, teacher's inputs) -> Batch."""

  @jax.jit
  def batch(params, x, ids, teacher, teacher_x):
    taught = None if teacher is None else block.taps(teacher, teacher_x)[1]
    return transforms.Batch(ids, block.taps(params, x)[1], taught)

  return batch


@functools.cache
def _forward(block: sites.Block):
  return jax.jit(block.forward)


def _forwarded(block, params, xs):
  return [_forward(block)(params, x) for x in xs]


def _check_finite(path, tree, what=''):
  try:
    trees.check_finite(tree)
  except errors.NonFiniteError as error:
    raise errors.NonFiniteError(f'{path or "the head"}: {what}{error}') from None


def _join(path, name):
  return f'{path}/{name}' if path else name
