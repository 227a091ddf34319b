"""Reading one checkpoint: nothing comes back that differs from what was saved, or from what was asked for.

Orbax alone restores a flipped bit, or another dtype, without a word.
"""

import pathlib
from collections.abc import Callable
from concurrent import futures
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from jaxquant import errors
from jaxquant.numerics import trees
from jaxquant.training import checksums
from jaxquant.training import manifest

MANIFEST = 'manifest'
# Of decoded chunks, so that a chunk is decoded once however many devices hold a part of it.
_CACHE_BYTES = 2**30
# Arrays read at a time: enough to keep a disk busy, few enough to need little more memory than the arrays do.
_READERS = 8


class Restored(NamedTuple):
  """What a checkpoint held: its step, the trees by name, the data iterator's state, and the caller's metadata."""

  step: int
  state: dict[str, Any]
  data: Any
  metadata: dict[str, Any]


class Damaged(Exception):
  """A checkpoint is not what was saved; says in one line where it differs."""


def read_manifest(directory: pathlib.Path, step: int) -> dict[str, Any]:
  """The content of a step's manifest; raises `Damaged`."""
  try:
    content = manifest.unseal(ocp.JsonCheckpointHandler().restore(directory / str(step) / MANIFEST))
  except Exception as error:
    raise Damaged(f'the manifest cannot be read: {one_line(error)}') from error
  if content['step'] != step:
    raise Damaged(f'it is a copy of step {content["step"]}')
  return content


def read(directory: pathlib.Path, step: int, target: dict[str, Any] | None, shardings: Any) -> Restored:
  """Reads a step and verifies it; `target` and `shardings` as in `Checkpoints.restore`.

  Raises:
    Damaged: in every process, also if only one could not read its part.
    CheckpointError: the step does not agree with `target`, or holds nodes that are not registered.
    UserError: an array cannot be sharded as asked.
  """
  content = _or_damaged(lambda: read_manifest(directory, step))
  entries = content['entries']
  saved = {name: entries[name] for name in ([manifest.PARAMS] if target is None else target) if name in entries}
  if target is not None and (misfits := list(manifest.differences(saved, manifest.describe(target)))):
    raise errors.CheckpointError(f'checkpoint step {step} in {directory} does not fit: {_first(misfits, "; ")}')
  records = manifest.records(saved)
  place = _placement(shardings, trees.arrays(target))
  structs = {path: _struct(path, record, place) for path, record in records.items()}
  arrays = _or_damaged(lambda: _load(directory / str(step), structs))
  sums = checksums.checksum(arrays)
  if wrong := [path for path in records if sums[path] != records[path]['checksum']]:
    raise Damaged(f'checksum mismatch in {_first(wrong, ", ")}')
  state = manifest.rebuild(saved, lambda path, record: manifest.from_stored(arrays[path], record))
  for name in state.keys() - {manifest.PARAMS}:
    leaves = [state[name][path] for path in trees.arrays(target[name])]
    state[name] = jax.tree.unflatten(jax.tree.structure(target[name]), leaves)
  return Restored(step, state, content['data'], content['metadata'])


def one_line(error: Exception) -> str:
  """Type and message of `error`, shortened; Orbax's and TensorStore's can fill a screen."""
  text = ' '.join(str(error).split())
  return f'{type(error).__name__}: {text[:300]}{"..." if len(text) > 300 else ""}'


def _load(path: pathlib.Path, structs: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
  """Reads the arrays of a step; raises `Damaged` naming one that cannot be read.

  This asks TensorStore, in which Orbax has put them, since Orbax's own reader meets a damaged file with pages of traces
  from its threads, and with a barrier at which the other processes would wait for the one that failed.
  """
  context = tensorstore.Context({'cache_pool': {'total_bytes_limit': _CACHE_BYTES}})

  def load(name):
    struct = structs[name]
    base = {'driver': 'file', 'path': f'{path / name.partition("/")[0]}/'}
    spec = {'driver': 'zarr', 'kvstore': {'driver': 'ocdbt', 'base': base, 'path': f'{name}/'}}
    indices = struct.sharding.addressable_devices_indices_map(struct.shape).values()
    try:
      stored = tensorstore.open(spec, read=True, context=context).result()
      if (stored.dtype.name, stored.shape) != (struct.dtype.name, struct.shape):
        raise ValueError(f'stored as {stored.dtype.name}{list(stored.shape)}')
      reads = {str(index): stored[index].read() for index in indices}
      shards = {index: read.result() for index, read in reads.items()}
    except MemoryError:
      raise
    except Exception as error:
      raise Damaged(f'{name} cannot be read: {one_line(error)}') from error
    return jax.make_array_from_callback(struct.shape, struct.sharding, lambda index: shards[str(index)])

  with futures.ThreadPoolExecutor(_READERS) as pool:
    return dict(zip(structs, pool.map(load, structs)))


def _or_damaged(function: Callable[[], Any]) -> Any:
  """The result of `function`; raises `Damaged` in every process, with the same message, if it does in one."""
  value, message = None, np.zeros(512, np.uint8)
  try:
    value = function()
  except Damaged as error:
    encoded = str(error).encode()[:message.size]
    message[:len(encoded)] = list(encoded)
  for row in multihost_utils.process_allgather(message).reshape(-1, message.size):
    if damage := bytes(row).rstrip(b'\0').decode(errors='replace'):
      raise Damaged(damage)
  return value


def _placement(shardings, like: dict[str, Any]) -> Callable[[str, jax.ShapeDtypeStruct], jax.sharding.Sharding]:
  if callable(shardings):
    return shardings
  given = trees.arrays(shardings)
  mesh = jax.sharding.get_mesh()
  if mesh.empty and jax.process_count() > 1:
    mesh = jax.make_mesh((jax.device_count(),), ('all',))
  if mesh.empty:
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  else:
    default = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

  def place(path, struct):
    del struct
    above = path
    while above and above not in given:
      above = above.rpartition('/')[0]
    return given.get(above) or getattr(like.get(path), 'sharding', None) or default

  return place


def _struct(path: str, record: dict[str, Any], place) -> jax.ShapeDtypeStruct:
  struct = jax.ShapeDtypeStruct(tuple(record['shape']), record['dtype'])
  try:
    struct = jax.ShapeDtypeStruct(struct.shape, struct.dtype, sharding=place(path, struct))
    struct.sharding.shard_shape(struct.shape)
  except ValueError as error:
    raise errors.UserError(f'{path} cannot be sharded as asked: {one_line(error)}') from error
  return struct


def _first(names: list[str], separator: str) -> str:
  return separator.join(names[:3] + ([f'and {len(names) - 3} more'] if len(names) > 3 else []))
