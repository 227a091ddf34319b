"""The programs of a block, compiled once for all blocks that are alike, and where their results lie."""

import functools

import jax

from jaxquant import compilation
from jaxquant.calibration import aliasing
from jaxquant.calibration import sites
from jaxquant.calibration import transform as transforms


@functools.cache
def compiled(transform: transforms.Transform, block: sites.Block):
  """Compiled (observe, search): one pair for all blocks that share a `Block` and a transform.

  `observe` takes a state and the arguments of `observed`. Arrays that `search` leaves alone are not copied.
  """
  observe = lambda state, *arguments: transform.observe(state, observed(block)(*arguments))
  return jax.jit(observe), aliasing.Jit(transform.search, compilation.options())


@functools.cache
def observed(block: sites.Block):
  """Jitted (params, inputs, ids, teacher's params or None, teacher's inputs) -> `transform.Batch`."""

  @jax.jit
  def batch(params, x, ids, teacher, teacher_x):
    taught = None if teacher is None else block.taps(teacher, teacher_x)[1]
    return transforms.Batch(ids, block.taps(params, x)[1], taught)

  return batch


@functools.cache
def forward(block: sites.Block):
  """Jitted (params, inputs) -> outputs."""
  return jax.jit(block.forward)


def advance(block, params, streams):
  """Replaces the batches of every stream by what the block puts out, one at a time; `params` by name of the stream."""
  for name, xs in streams.items():
    for i, x in enumerate(xs):
      xs[i] = forward(block)(params[name], x)


def placed(tree, before):
  """`tree`, with what stands for an array of `before` that is sharded over a mesh, in its shape, sharded as that is.

  The compiler splits what it puts out as it sees fit, vectors too, which are whole on every device elsewhere.
  """
  given = dict(jax.tree_util.tree_leaves_with_path(before))

  def of_before(path, leaf):
    old = given.get(path)
    sharding = getattr(old, 'sharding', None)
    if leaf is old or not isinstance(sharding, jax.sharding.NamedSharding) or leaf.shape != old.shape:
      return leaf
    return jax.device_put(leaf, sharding)

  return jax.tree_util.tree_map_with_path(of_before, tree)
