"""Transforms in tests: claims, a run of one transform on activations that the test makes up, and what steps cost."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxquant.calibration import driver
from jaxquant.calibration import plan
from jaxquant.calibration import sites
from jaxquant.calibration import transform as transforms


def claim(*names: str, sites: Sequence[sites.Site] = (), judge=None) -> transforms.Claim:
  """Returns the claim of `names` in a block that has `sites` and nothing to run."""
  return transforms.Claim(names, sites_block(sites, judge))


def sites_block(declared: Sequence[sites.Site], judge=None) -> sites.Block:
  """Returns a block that only says which sites it has, and how a search is judged."""
  return sites.Block(tuple(declared), None, None, judge)


def batch(activations: dict[str, Any], first: int = 0) -> transforms.Batch:
  """Returns a batch of {site: [sequences, tokens, features]}, each the same before and after its specification."""
  count = len(next(iter(activations.values())))
  arrays = {site: jnp.asarray(x) for site, x in activations.items()}
  after = {sites.ready(site): x for site, x in arrays.items()}
  return transforms.Batch(jnp.arange(first, first + count), {**arrays, **after})


def apply(factory: plan.Factory, owned: transforms.Claim, params: Any, batches: Sequence[transforms.Batch] = ()):
  """Returns (params, {name: record and decisions}) as the driver makes them."""
  transform = factory(owned)
  example = jax.eval_shape(lambda x: x, batches[0]) if batches else None
  state = transform.init(params, example)
  for seen in batches:
    state = jax.jit(transform.observe)(state, seen)
  params, record, decisions = jax.jit(transform.search)(params, state)
  decisions = jax.tree.map(lambda x: x.item(), decisions)
  params = transform.rewrite(params, record, decisions)
  return params, driver.merged(jax.device_get(record), decisions)


def quantized(
    params: Any, model: sites.StagedModel, steps: Sequence[plan.Step], batches: Sequence[Any],
    forward: Callable[[Any], Any]) -> tuple[driver.Result, float]:
  """Returns what the driver makes of `params`, and the mean squared difference between `forward` of both trees."""
  result = driver.run(params, model, steps, batches)
  return result, float(jnp.mean((forward(result.params) - forward(params)) ** 2))
