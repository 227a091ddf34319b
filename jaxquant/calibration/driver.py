"""The driver: runs transforms over a model, block by block, so that only one block's activations are held at a time."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxquant import errors
from jaxquant.calibration import rules as rules_lib
from jaxquant.calibration import sites
from jaxquant.calibration import transform as transforms
from jaxquant.numerics import trees

Factory = Callable[[tuple[str, ...]], transforms.Transform]


class Step(NamedTuple):
  """One pass of methods over every block.

  Attributes:
    owns: `linears` or `sites`, what the rules distribute.
    rules: (regular expression on the whole path, factory or None) pairs; a factory makes the transform for the names
      it wins in a block, None leaves them as they are.
    every: whether every name needs an owner; otherwise names that no rule matches are left as they are.
  """

  owns: str
  rules: Sequence[tuple[str, Factory | None]]
  every: bool = True


class Result(NamedTuple):
  """What a run returns.

  Attributes:
    params: the rewritten tree.
    decisions: {path of the linear or site: its record and decisions, as Python numbers}.
  """

  params: Any
  decisions: dict[str, dict]


def run(
    params: Any, model: sites.StagedModel, steps: Sequence[Step], batches: Sequence[Any], *,
    propagate: str = 'float', report: Callable[[str], None] = lambda line: None) -> Result:
  """Quantizes `params`.

  Args:
    params: the whole tree; every weight must be finite.
    model: its blocks.
    steps: applied in order within each block; each observes what the ones before it made.
    batches: token ids, int32 [sequences, tokens] each.
    propagate: which stream reaches the next block, that of the `float` block as it came or of the `quantized` one.
    report: called with a line for each finished block.

  Raises:
    UserError: a rule that wins nothing, a name without owner, no batches where one is needed.
    NonFiniteError: non-finite weights, by path.
  """
  if propagate not in ('float', 'quantized'):
    raise errors.UserError(f'unknown stream {propagate!r}; there are float and quantized')
  trees.check_finite(params)
  plans = _plan(params, model, steps)
  ids = jnp.split(jnp.arange(sum(len(b) for b in batches), dtype=jnp.int32), _offsets(batches))
  streams = [jax.jit(model.embed)(params, batch) for batch in batches]
  decisions = {}
  for done, (path, block) in enumerate(model.blocks):
    before = current = trees.get(params, path)
    for transform in plans[path]:
      current, record = _apply(transform, block, current, streams, ids)
      decisions.update({f'{path}/{name}' if path else name: entry for name, entry in record.items()})
    params = trees.put(params, path, current)
    report(f'calibrated {path or "the head"} ({done + 1} of {len(model.blocks)})')
    if done + 1 < len(model.blocks):
      source = before if propagate == 'float' else current
      streams = [_forward(block)(source, stream) for stream in streams]
  return Result(params, decisions)


def _apply(transform: transforms.Transform, block: sites.Block, params, streams, ids):
  """One transform on one block: (params, {name: record and decisions})."""
  observe, search = _compiled(transform, block)
  state = transform.init(params)
  if jax.tree.leaves(state):
    if not streams:
      raise errors.UserError('calibration needs at least one batch of tokens')
    for stream, batch_ids in zip(streams, ids):
      state = observe(state, params, stream, batch_ids)
  params, record, decisions = search(params, state)
  record, decisions = jax.device_get((record, decisions))
  decisions = jax.tree.map(lambda x: x.item(), decisions)
  params = transform.rewrite(params, record, decisions)
  record = jax.tree.map(lambda x: x.tolist(), record)
  return params, {name: {**record.get(name, {}), **decisions.get(name, {})} for name in {**record, **decisions}}


@functools.cache
def _compiled(transform: transforms.Transform, block: sites.Block):
  """Jitted (observe, search), one pair for all blocks that share a `Block` and a transform."""

  @jax.jit
  def observe(state, params, stream, ids):
    return transform.observe(state, transforms.Batch(ids, block.taps(params, stream)[1]))

  return observe, jax.jit(transform.search)


@functools.cache
def _forward(block: sites.Block):
  return jax.jit(block.forward)


def _plan(params, model, steps) -> dict[str, list[transforms.Transform]]:
  """The transforms of every block, by its path; equal claims in equal blocks share one transform, hence one compile."""
  make = functools.cache(lambda factory, names: factory(names))
  plans = {path: [] for path, _ in model.blocks}
  inner = [path for path in plans if path]
  for step in steps:
    if step.owns == 'linears':
      names = trees.linears(params)
    else:
      names = [f'{path}/{site.name}' if path else site.name for path, block in model.blocks for site in block.sites]
    owners = rules_lib.assign(step.rules, names, f'rules for {step.owns}', every=step.every)
    claims = {}
    for name, factory in owners.items():
      if factory is not None:
        home = next((path for path in inner if name.startswith(path + '/')), '')
        claims.setdefault((home, factory), []).append(name[len(home) + 1 if home else 0 :])
    for (home, factory), claimed in claims.items():
      plans[home].append(make(factory, tuple(claimed)))
  return plans


def _offsets(batches):
  total, offsets = 0, []
  for batch in batches[:-1]:
    total += len(batch)
    offsets.append(total)
  return offsets
