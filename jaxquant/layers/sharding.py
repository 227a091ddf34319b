"""Where arrays live: one mesh axis for the batch, over which parameters may be sharded too.

A batch is split over the devices by rows. Parameters are replicated, or fully sharded: every kernel, and its optimizer
state with it, is split along its last axis that the devices divide. XLA inserts the collectives.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

DATA_AXIS = 'data'


def data_mesh(devices=None) -> jax.sharding.Mesh:
  """The mesh of all devices (or of `devices`) along one axis."""
  devices = jax.devices() if devices is None else devices
  return jax.make_mesh((len(devices),), (DATA_AXIS,), (jax.sharding.AxisType.Auto,), devices=devices)


def constrain_batch(x):
  """Keeps the leading axis of `x` split over the mesh's data axis; without such a mesh in scope, `x` itself."""
  if DATA_AXIS not in jax.sharding.get_abstract_mesh().axis_names:
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(DATA_AXIS))


def constrain_replicated(x):
  """Gives every device, hence every process, all of the arrays `x`; without a mesh in scope, `x` itself."""
  if DATA_AXIS not in jax.sharding.get_abstract_mesh().axis_names:
    return x
  return jax.lax.with_sharding_constraint(x, jax.tree.map(lambda _: PartitionSpec(), x))


def on_one_device() -> bool:
  """Whether nothing that is traced is split over the devices of a mesh in scope, as a Pallas kernel cannot be."""
  return jax.sharding.get_abstract_mesh().size <= 1


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  """A whole copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def parameter_sharding(mesh: jax.sharding.Mesh, shape: tuple[int, ...], fully: bool) -> NamedSharding:
  """Sharding of an array of `shape`: replicated, or, if `fully` sharded and of rank two or more, split along one axis.

  The last axis that the devices divide is split: for a packed kernel [in, out] that is `out`, for codes, scales and
  zero points alike.
  """
  count = mesh.devices.size
  for axis in reversed(range(len(shape))):
    if fully and len(shape) >= 2 and count > 1 and shape[axis] % count == 0 and shape[axis] >= count:
      return NamedSharding(mesh, PartitionSpec(*[DATA_AXIS if i == axis else None for i in range(len(shape))]))
  return replicated(mesh)


def tree_shardings(mesh: jax.sharding.Mesh, tree: Any, fully: bool) -> Any:
  """`parameter_sharding` for every array of `tree`."""
  return jax.tree.map(lambda x: parameter_sharding(mesh, x.shape, fully), tree)


def place_rows(mesh: jax.sharding.Mesh, local: np.ndarray) -> jax.Array:
  """A global batch from each process's contiguous share of its rows."""
  return jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec(DATA_AXIS)), local)


def place_whole(mesh: jax.sharding.Mesh, array: np.ndarray) -> jax.Array:
  """A global batch from an array that every process holds whole."""
  spec = PartitionSpec(DATA_AXIS) if array.shape[0] % mesh.devices.size == 0 else PartitionSpec()
  return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), lambda index: array[index])
