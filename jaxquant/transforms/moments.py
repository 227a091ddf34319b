"""Second moments of what the claimed linears read: the Hessians of their output errors, one for all that read the same.

What is observed is the activation as the product sees it, behind its input specification.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxquant import errors
from jaxquant.calibration import channels
from jaxquant.calibration import sites
from jaxquant.calibration import transform
from jaxquant.numerics import trees


def points(claim: transform.Claim, params: Any) -> dict[str, tuple[str, ...]]:
  """{tap point: the claimed linears whose products read it}, in the order of the sites.

  A linear with an input specification of its own reads behind that, the others of its site read behind the site's.

  Raises:
    UserError: a linear that reads no site.
  """
  found = {}
  for site, linears in claim.by_site().items():
    for path in linears:
      own = f'{path}/input'
      found.setdefault(sites.ready(own if trees.get(params, own) else site), []).append(path)
  return {point: tuple(linears) for point, linears in found.items()}


def empty(claim: transform.Claim, params: Any, batch: transform.Batch) -> dict[str, channels.SecondMoment]:
  """{tap point: the statistic of no values}, for the `init` of a transform of linears.

  Raises:
    UserError: a linear whose input is not observed, or has not as many features as the kernel has inputs.
  """
  state = {}
  for point, linears in points(claim, params).items():
    features = batch.activation(point).shape[-1]
    for path in linears:
      shape = trees.get(params, path)['kernel'].shape
      if shape[:-1] != (features,):
        raise errors.UserError(
            f'{path}: {point} has {features} features, but the kernel of shape {shape} is no [{features}, outputs] '
            '(an embedding that serves as head contracts with its other axis, and cannot be calibrated as a linear)')
    state[point] = channels.SecondMoment.empty(features)
  return state


def observe(state: dict[str, channels.SecondMoment], batch: transform.Batch) -> dict[str, channels.SecondMoment]:
  """The state with the activations of `batch`: the `observe` of a transform."""
  return {point: moment.observed(batch.activation(point)) for point, moment in state.items()}


def warn(
    params: Any, record: dict[str, dict], together: Callable[[str], int | None] = lambda path: None) -> dict[str, str]:
  """What a user should know of linears that were observed in fewer `tokens` than inputs: the `warn` of a transform.

  Args:
    params: the tree.
    record: that of the transform, with the `tokens` of each linear.
    together: path -> how many inputs, those of a group, are judged by themselves; None: all are judged together.
  """
  found = {}
  for path, entry in record.items():
    group, inputs = together(path), trees.get(params, path)['kernel'].shape[-2]
    if entry['tokens'] < (group or inputs):
      found[path] = (
          f'its {f"groups of {group}" if group else inputs} inputs were observed in {entry["tokens"]} tokens only; '
          'with fewer tokens than inputs, errors along directions that no token has go unseen')
  return found


def relative(error, total):
  """error / total for non-negative float32 arrays; 0 where nothing is lost of nothing."""
  return error / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)
