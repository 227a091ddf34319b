"""Calibration of a function of your own: no model of this package, no launcher, a nested dict and what reads it."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxquant import errors
from jaxquant.calibration import sites as sites_lib
from jaxquant.layers import inputs
from jaxquant.layers import linear
from jaxquant.numerics import trees

# The part of a function's output, of its root mean square, that rounding folded weights to their dtype may change.
_EQUIVALENT = 0.02

Forward = Callable[[Any, Any], tuple[Any, dict[str, Any]]]
Judges = Mapping[tuple[str, str], Callable[[Any, Any], Any]]


def block(forward: Forward, sites: Sequence[sites_lib.Site], judges: Judges | None = None) -> sites_lib.Block:
  """The block that a function is.

  Args:
    forward: (params, inputs) -> (outputs, {name of a site: the activation there, before its input specification}). Its
      linear layers are evaluated by `layers.linear.linear`, which runs whatever the tree holds; where several linears
      read one site, `layers.inputs.prepare` makes the activation that they share.
    sites: its sites, in the order in which they are computed.
    judges: {(name of a site, scope): (params, activation of the site before its input specification) -> what a search
      of that scope compares there} (`sites.Block.judge`). A site that opens an attention needs one for `inner`.

  Returns:
    A Block. Where there is no judge, searches compare what the linears that read the site put out.

  Raises:
    UserError: a judge of no site or scope, or an attention without one.
  """
  block_sites, judges = tuple(sites), dict(judges or {})
  for name, scope in judges:
    if scope not in sites_lib.SCOPES or name not in [site.name for site in block_sites]:
      raise errors.UserError(f'a judge of {name!r} in {scope!r}, which is no site or none of the scopes '
                             f'{", ".join(sites_lib.SCOPES)}')
  if lost := [site.name for site in block_sites if site.opens_attention and (site.name, 'inner') not in judges]:
    raise errors.UserError(f"{lost[0]} opens an attention: judges[{lost[0]!r}, 'inner'] is to compute its mix")

  def taps(params, x):
    y, activations = forward(params, x)
    after = {
        sites_lib.ready(name): inputs.prepare(trees.get(params, name), x).values for name, x in activations.items()}
    return y, {**activations, **after}

  by_linears = judge_by_linears(block_sites)

  def judge(name, scope, params, x):
    return judges[name, scope](params, x) if (name, scope) in judges else by_linears(name, scope, params, x)

  return sites_lib.Block(block_sites, lambda params, x: forward(params, x)[0], taps, judge)


def judge_by_linears(sites: Sequence[sites_lib.Site], implementation: str = 'simulated') -> Callable[..., Any]:
  """The judge of blocks that are nothing but linears: what those that read a site put out, in every scope."""

  def judge(name, scope, params, x):
    del scope
    prepared = inputs.prepare(trees.get(params, name), x)
    # A linear applies the specification that stands at its own `input` itself.
    outputs = [
        linear.linear(trees.get(params, path), x if name == f'{path}/input' else prepared,
                      implementation=implementation, transpose=trees.is_table(path))
        for site in sites if site.name == name for path in site.consumers]
    return jnp.concatenate(outputs, axis=-1)

  return judge


def staged(
    forward: Forward, sites: Sequence[sites_lib.Site], judges: Judges | None = None) -> sites_lib.StagedModel:
  """A model of one block, `block(forward, sites, judges)`, at the root of its tree; calibration batches are its inputs.

  The driver checks that the function reads what steps on its sites leave there, and that folds leave it the same. A
  deeper model is a `StagedModel` of several blocks, so that only one has to be held at a time.
  """
  check = functools.partial(_check, jax.jit(lambda params, x: forward(params, x)[0]), tuple(sites))
  return sites_lib.StagedModel(lambda params, x: x, (('', block(forward, sites, judges)),), check)


def _check(forward, sites, before, after, x) -> None:
  """`StagedModel.check` of a function and its sites."""
  found = {site.name: trees.get(after, site.name) or {} for site in sites}
  for name, entries in found.items():
    if set(entries) - set(trees.get(before, name) or {}) and not _reads(forward, name, after, x):
      module = name.rpartition('/')[0]
      raise errors.UserError(
          f'{name}: the function does not read what this step has put there; layers.inputs.prepare applies it to the '
          f'activation that several linears share: inputs.prepare(params[{module!r}].get("input"), x)')
  # What quantizes activations makes errors of its own.
  if not any(found.values()) and (change := _change(forward(before, x), forward(after, x))) > _EQUIVALENT:
    folded = ', '.join(site.name for site in sites if site.producer)
    raise errors.UserError(
        f'a fold at one of {folded} has changed what the function computes by {change:.1%}: a site names the producer '
        'whose channels it reads, None where a GELU or the like lies between, and all that read it; shifts=True is for '
        'producers whose bias the function adds')


def _reads(forward, name: str, params, x) -> bool:
  """Whether a function applies the specification at `name`: one that nobody knows is then refused."""
  try:
    jax.eval_shape(forward, trees.put(params, name, {'': jnp.zeros(())}), x)
  except inputs.UnknownEntry:
    return True
  return False


def _change(want, got) -> float:
  """The norm of the difference of two outputs, relative to that of the first."""
  square = lambda tree: sum(float(jnp.sum(jnp.square(leaf.astype(jnp.float32)))) for leaf in jax.tree.leaves(tree))
  return (square(jax.tree.map(jnp.subtract, got, want)) / max(square(want), 1e-30)) ** 0.5
