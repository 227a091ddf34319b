"""The driver: runs transforms over a model, block by block, so that only a window of blocks is held at a time.

Two streams flow through the blocks, as far as the steps ask for them: what the full-precision blocks put out, and what
the quantized ones do. The calibration batches may be sharded over devices along their first axis: statistics are
computed under jit on global arrays, so that any number of devices gives the same ones.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxquant import errors
from jaxquant.calibration import learning
from jaxquant.calibration import plan as plans
from jaxquant.calibration import programs
from jaxquant.calibration import sites
from jaxquant.calibration import stores
from jaxquant.calibration import transform as transforms
from jaxquant.numerics import trees

Step, Learning = plans.Step, plans.Learning


class Result(NamedTuple):
  """What a run returns.

  Attributes:
    params: the rewritten tree.
    decisions: {path of the linear or site: {name of a method: its record and decisions, as Python numbers}}, in the
      order of the steps. Where a method runs on a name again, it is numbered: `smooth_quant`, `smooth_quant_2`.
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
    restored: units of `done` that an earlier run had finished.
    decisions: of the block (of all blocks of a window) so far, as in `Result`, by path.
    warnings: {name: what a user should know of it}, as `Transform.warn` of the work says.
  """

  block: str
  work: str
  done: int
  total: int
  seconds: float
  decisions: dict[str, dict]
  warnings: dict[str, str] = {}
  restored: int = 0


def run(
    params: Any, model: sites.StagedModel, steps: Sequence[Step | Learning], batches: Sequence[Any], *,
    window: int = 1, store: stores.Store | None = None, report: Callable[[Progress], None] = lambda progress: None,
) -> Result:
  """Quantizes a model.

  Args:
    params: the whole tree, or a `stores.Source` that loads it block by block; every weight must be finite.
    model: its blocks.
    steps: applied in order within each window; each observes what the ones before it made.
    batches: a list of what the model takes: token ids, int32 [sequences, tokens] each, for those of this package.
    window: consecutive blocks that are held, and learn, together.
    store: keeps finished blocks, from which a run that was interrupted continues.
    report: called after each transform of each block.

  Raises:
    UserError: what is no step, a rule that wins nothing, a name without owner, no batches where one is needed, an empty
      one, or what `StagedModel.check` says.
    NonFiniteError: non-finite weights or activations, by path.
  """
  if hasattr(batches, 'ndim'):
    raise errors.UserError(f'batches is a list of arrays, not one array of shape {batches.shape}')
  steps, batches = list(steps), list(batches)
  if strange := [step for step in steps if not isinstance(step, Step | Learning)]:
    raise errors.UserError(f'steps are driver.Step or driver.Learning, not a {type(strange[0]).__name__}')
  source = params if isinstance(params, stores.Source) else stores.InMemory(params, model)
  store = stores.Nowhere() if store is None else store
  return _Run(source, model, steps, batches, store, report).over(window)


class _Run:
  """One run: what does not change from block to block, and the streams."""

  def __init__(self, source, model, steps, batches, store, report):
    self.source, self.model, self.steps, self.store, self.report = source, model, steps, store, report
    self.batches = batches
    self.plans = plans.make(source.abstract(), model, steps)
    self.started, self.done, self.restored = time.monotonic(), 0, 0
    self.total = sum(len(pairs) for plan in self.plans for pairs in plan.values())
    ends = [sum(len(b) for b in batches[: i + 1]) for i in range(len(batches))]
    self.ids = [jnp.arange(end - len(b), end, dtype=jnp.int32) for end, b in zip(ends, batches)]
    root = source.load('')
    trees.check_finite(root)
    needed = frozenset().union(*map(plans.streams, self.steps, self.plans))
    embedded = [jax.jit(model.embed)(root, batch) for batch in batches] if needed else []
    self.streams = {name: list(embedded) for name in plans.STREAMS if name in needed}

  def over(self, window: int) -> Result:
    windows = plans.windows(self.model, window)
    finished, decisions = {}, {}
    for number, blocks in enumerate(windows):
      before = {path: self.source.load(path) for path, _ in blocks}
      for path, subtree in before.items():
        _check_finite(path, subtree)
      after, made = self._restored(blocks) or self._rewritten(blocks, before)
      for path, entries in made.items():
        decisions.update({_join(path, name): entry for name, entry in entries.items()})
      finished.update(after)
      if number + 1 < len(windows):
        for path, block in blocks:
          programs.advance(block, {'float': before[path], 'quantized': after[path]}, self.streams)
    return Result(self.source.assemble(finished), decisions)

  def _restored(self, blocks):
    """(subtrees, decisions) of the blocks by path as an earlier run finished them, or None."""
    found = {path: self.store.finished(path) for path, _ in blocks}
    if any(entry is None for entry in found.values()):
      return None
    if units := sum(len(plan[path]) for plan in self.plans for path in found):
      self.restored += units
      self._report(blocks, 'restored', {path: entry[1] for path, entry in found.items()}, units)
    return {path: entry[0] for path, entry in found.items()}, {path: entry[1] for path, entry in found.items()}

  def _rewritten(self, blocks, before):
    """(subtrees, decisions) of the blocks by path after all steps, which the store keeps."""
    current, decisions = dict(before), {path: {} for path, _ in blocks}
    for step, plan in zip(self.steps, self.plans):
      run = self._learn if isinstance(step, Learning) else self._step
      run(step, plan, blocks, before, current, decisions)
    for path, subtree in current.items():
      _check_finite(path, subtree, 'rewritten: ')
      self.store.save(path, subtree, decisions[path])
    return current, decisions

  def _step(self, step, plan, blocks, before, current, decisions):
    """Runs a step on each block of the window, behind what became of those before it."""
    needed = plans.streams(step, {path: plan[path] for path, _ in blocks})
    streams = {name: list(xs) for name, xs in self.streams.items() if name in needed}
    for i, (path, block) in enumerate(blocks):
      for factory, claim in plan[path]:
        transform, given = plans.transform(factory, claim), current[path]
        current[path], record = self._apply(transform, block, given, before[path], step.stream, streams, path)
        if step.owns == 'sites' and self.model.check and self.batches:
          self.model.check(given, current[path], self.batches[0])
        decisions[path] = recorded(decisions[path], plans.method(factory), record)
        warnings = {_join(path, name): text for name, text in transform.warn(current[path], record).items()}
        self._report(blocks[i:i + 1], ', '.join(claim.names), decisions, warnings=warnings)
      if i + 1 < len(blocks):
        programs.advance(block, {'float': before[path], 'quantized': current[path]}, streams)

  def _apply(self, transform, block, params, teacher, stream, streams, path):
    """One transform on one block: (params, {name: record and decisions})."""
    observe, search = programs.compiled(transform, block)
    if transform.needs_data:
      check_batches(streams[stream])
      teacher = teacher if transform.needs_teacher else None
      taught = streams['float'] if transform.needs_teacher else self.ids
      batches = [(params, x, ids, teacher, y) for x, ids, y in zip(streams[stream], self.ids, taught, strict=True)]
      state = transform.init(params, programs.observed(block).eval_shape(*batches[0]))
      for batch in batches:
        state = observe(state, *batch)
      _check_finite(path, state, 'activations: ')
    else:
      state = transform.init(params, None)
    found, record, decisions = search(params, state)
    record, decisions = jax.device_get((record, decisions))
    decisions = jax.tree.map(lambda x: x.item(), decisions)
    params = programs.placed(transform.rewrite(found, record, decisions), params)
    return params, merged(jax.tree.map(lambda x: x.tolist(), record), decisions)

  def _learn(self, step, plan, blocks, before, current, decisions):
    """Trains what a step of learning claims in the window, one method after the other."""
    del step
    factories = dict.fromkeys(factory for path, _ in blocks for factory, _ in plan[path])
    if not factories:
      return
    targets = {'float': list(self.streams['float'])}
    for path, block in blocks:
      programs.advance(block, {'float': before[path]}, targets)
    for factory in factories:
      owned = {path: claim for path, _ in blocks for owner, claim in plan[path] if owner == factory}
      claims = tuple(owned.get(path, transforms.Claim((), block)) for path, block in blocks)
      try:
        learned, records = learning.fit(
            plans.transform(factory, claims), tuple(block for _, block in blocks),
            tuple(current[path] for path, _ in blocks), self.streams['quantized'], targets['float'])
      except errors.NonFiniteError as error:
        raise errors.NonFiniteError(f'{", ".join(path or "the head" for path, _ in blocks)}: {error}') from None
      for (path, _), subtree, record in zip(blocks, learned, records, strict=True):
        current[path], decisions[path] = subtree, recorded(decisions[path], plans.method(factory), record)
      names = (_join(path, name) for path, claim in owned.items() for name in claim.names)
      self._report(blocks, ', '.join(names), decisions, len(owned))

  def _report(self, blocks, work, decisions, units=1, warnings=None):
    self.done += units
    made = {_join(path, name): entry for path, _ in blocks for name, entry in decisions[path].items()}
    seconds = time.monotonic() - self.started
    self.report(Progress(
        blocks[0][0], work, self.done, self.total, seconds, made, warnings or {}, self.restored))


def check_batches(batches: Sequence[Any]) -> None:
  """Raises `UserError` if there are no batches for a transform that needs one, or one of them is empty."""
  if not batches:
    raise errors.UserError('calibration needs at least one batch of tokens')
  if not all(batch.size for batch in batches):
    raise errors.UserError('calibration has a batch without tokens, which says nothing of any activation; leave it out')


def merged(first: dict, second: dict) -> dict:
  """Two {name: entries}, entries of the second added to those of the first."""
  return {name: {**first.get(name, {}), **second.get(name, {})} for name in {**first, **second}}


def recorded(decisions: dict, method: str, entries: dict) -> dict:
  """{name: {method: entry}} with those of a method, {name: entry}, added: nothing that was there is replaced."""

  def unused(made):
    names = itertools.chain([method], (f'{method}_{number}' for number in itertools.count(2)))
    return next(name for name in names if name not in made)

  added = {name: {unused(decisions.get(name, {})): entry} for name, entry in entries.items()}
  return merged(decisions, added)


def _check_finite(path, tree, what=''):
  try:
    trees.check_finite(tree)
  except errors.NonFiniteError as error:
    raise errors.NonFiniteError(f'{path or "the head"}: {what}{error}') from None


def _join(path, name):
  return f'{path}/{name}' if path else name
