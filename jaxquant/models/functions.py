"""Calibration of a function of your own: no model of this package, no launcher, a nested dict and what reads it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from jaxquant.calibration import sites as sites_lib
from jaxquant.layers import inputs
from jaxquant.layers import linear
from jaxquant.numerics import trees


def block(
    forward: Callable[[Any, Any], tuple[Any, dict[str, Any]]], sites: Sequence[sites_lib.Site]) -> sites_lib.Block:
  """The block that a function is.

  Args:
    forward: (params, inputs) -> (outputs, {name of a site: the activation there, before its input specification}). Its
      linear layers are evaluated by `layers.linear.linear`, which runs whatever the tree holds; where several linears
      read one site, `layers.inputs.prepare` makes the activation that they share.
    sites: its sites, in the order in which they are computed.

  Returns:
    A Block. Searches are judged by what the linears that read a site put out.
  """
  block_sites = tuple(sites)

  def taps(params, x):
    y, activations = forward(params, x)
    after = {
        sites_lib.ready(name): inputs.prepare(trees.get(params, name), x).values for name, x in activations.items()}
    return y, {**activations, **after}

  def judge(name, scope, params, x):
    del scope
    prepared = inputs.prepare(trees.get(params, name), x)
    read = [trees.get(params, path) for site in block_sites if site.name == name for path in site.consumers]
    without = lambda layer: {key: value for key, value in layer.items() if key != 'input'}
    return jnp.concatenate([linear.linear(without(layer), prepared) for layer in read], axis=-1)

  return sites_lib.Block(block_sites, lambda params, x: forward(params, x)[0], taps, judge)


def staged(
    forward: Callable[[Any, Any], tuple[Any, dict[str, Any]]], sites: Sequence[sites_lib.Site]
) -> sites_lib.StagedModel:
  """A model of one block, `block(forward, sites)`, at the root of its tree; calibration batches are its inputs.

  A deeper model is a `StagedModel` of several blocks, so that only one has to be held at a time.
  """
  return sites_lib.StagedModel(lambda params, x: x, (('', block(forward, sites)),))
