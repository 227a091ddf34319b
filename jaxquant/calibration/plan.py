"""The steps of a calibration, and which transform they give to which block."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxquant import errors
from jaxquant.calibration import rules as rules_lib
from jaxquant.calibration import sites
from jaxquant.calibration import transform as transforms
from jaxquant.numerics import trees

Factory = Callable[[transforms.Claim], Any]

OWNED = ('linears', 'sites', 'operands')
SCHEDULES = ('block', 'sequential')
STREAMS = ('float', 'quantized')


class Step(NamedTuple):
  """One pass of methods over the blocks.

  Attributes:
    owns: `linears`, `sites` or `operands`, what the rules distribute. Operands of attention are no sites, so that no
      pattern meant for the inputs of linears claims them too.
    rules: (regular expression on the whole path, factory or None) pairs; a factory makes the transform for the names
      it wins in a block, None leaves them as they are.
    every: whether every name needs an owner; otherwise names that no rule matches are left as they are.
    schedule: `block`: everything that a factory owns in a block is observed at once; `sequential`: site by site in
      the order of computation, so that each is observed behind what became of those before it; what reads no site
      comes last.
    stream: what enters the block when this step observes it: the output of the `float` blocks before it, or of the
      `quantized` ones.
  """

  owns: str
  rules: Sequence[tuple[str, Factory | None]]
  every: bool = True
  schedule: str = 'block'
  stream: str = 'float'


class Learning(NamedTuple):
  """One pass of learning methods, which train windows of consecutive blocks (calibration.learning).

  Attributes:
    rules: as for a step; a factory is called once for each window, with its claims in the window's blocks in order, and
      makes a `learning.Learner`.
    every, owns: as for a step.
  """

  rules: Sequence[tuple[str, Callable[[tuple[transforms.Claim, ...]], Any] | None]]
  every: bool = True
  owns: str = 'linears'


Plan = dict[str, list[tuple[Factory, transforms.Claim]]]


def make(params: dict, model: sites.StagedModel, steps: Sequence[Step | Learning]) -> list[Plan]:
  """For each step, {path of a block: (factory, claim) pairs in the order in which they run}.

  Args:
    params: the tree, which may be abstract.
    model: its blocks.
    steps: the steps.

  Raises:
    UserError: an unknown word, a rule that wins nothing, a name without owner.
  """
  return [_step(params, model, step) for step in steps]


def windows(model: sites.StagedModel, size: int) -> list[list[tuple[str, sites.Block]]]:
  """The model's blocks in runs of `size`; what follows the layers is by itself.

  Raises:
    UserError: `size` is not positive.
  """
  if size < 1:
    raise errors.UserError(f'a window of blocks holds at least one, not {size}')
  layers = [pair for pair in model.blocks if pair[0]]
  rest = [[pair] for pair in model.blocks if not pair[0]]
  return [layers[i : i + size] for i in range(0, len(layers), size)] + rest


def streams(step: Step | Learning, plan: Plan) -> frozenset[str]:
  """The streams that the transforms of `plan` read when `step` runs them: none where they observe nothing."""
  if isinstance(step, Learning):
    return frozenset(STREAMS if any(plan.values()) else ())
  made = [transform(factory, claim) for pairs in plan.values() for factory, claim in pairs]
  return frozenset([step.stream for each in made if each.needs_data] + ['float' for each in made if each.needs_teacher])


def _step(params, model, step):
  check = lambda value, known, what: None if value in known else _refuse(value, known, what)
  check(step.owns, OWNED, 'kind of names')
  if isinstance(step, Step):
    check(step.schedule, SCHEDULES, 'schedule')
    check(step.stream, STREAMS, 'stream')
  blocks = dict(model.blocks)
  if step.owns == 'linears':
    names = trees.linears(params)
  else:
    names = [_join(path, site.name) for path, block in model.blocks for site in getattr(block, step.owns)]
  owners = rules_lib.assign(step.rules, names, f'rules for {step.owns}', every=step.every)
  claimed = {}
  for name, factory in owners.items():
    if factory is not None:
      home = next((path for path in blocks if path and name.startswith(path + '/')), '')
      claimed.setdefault(home, {}).setdefault(factory, []).append(name[len(home) + 1 if home else 0 :])
  plan = {path: [(factory, transforms.Claim(tuple(names), block)) for factory, names in claimed.get(path, {}).items()]
          for path, block in model.blocks}
  if isinstance(step, Step) and step.schedule == 'sequential':
    plan = {path: _site_by_site(pairs) for path, pairs in plan.items()}
  return plan


def _site_by_site(pairs):
  """The pairs with their claims cut into those of single sites, in the order in which the sites are computed.

  What reads no site, such as an embedding, comes last.
  """
  if not pairs:
    return []
  reads = lambda site, name: name == site.name or name in site.consumers
  lost = lambda block, name: not any(reads(site, name) for site in block.sites)
  block = pairs[0][1].block
  stages = [functools.partial(reads, site) for site in block.sites] + [functools.partial(lost, block)]
  return [
      (factory, claim._replace(names=names)) for belongs in stages for factory, claim in pairs
      if (names := tuple(filter(belongs, claim.names)))]


def method(factory: Callable[..., Any]) -> str:
  """The name of a method: that of the function, or the class, whose options functools.partial binds."""
  while isinstance(factory, functools.partial):
    factory = factory.func
  return getattr(factory, '__name__', type(factory).__name__)


@functools.cache
def transform(factory: Factory, claim: transforms.Claim) -> Any:
  """What the factory makes of the claim: one object, hence one compilation, for equal claims."""
  return factory(claim)


def _refuse(value, known, what):
  raise errors.UserError(f'unknown {what} {value!r}; there are {", ".join(known)}')


def _join(path, name):
  return f'{path}/{name}' if path else name
