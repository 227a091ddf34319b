"""The manifest of a checkpoint: what its arrays are, so that they come back as that or not at all.

Orbax writes arrays and knows neither what a node around them means nor whether they changed on disk. The manifest is
one JSON document beside them: for parameters the structure that `nodes.encode` writes down, formats and axes included,
for every other entry its arrays by path, and for each array shape, dtype and checksum. It also holds the position in
the data, the metrics and the caller's metadata. Its own SHA-256 seals it.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.numerics import nodes
from jaxquant.numerics import trees
from jaxquant.training import checksums

PARAMS = 'params'
# TensorStore, beneath Orbax, has no such types and fails in the midst of a save.
_UNSTORABLE = ('uint2', 'uint4')


def stored_arrays(state: dict[str, Any]) -> dict[str, jax.Array]:
  """The arrays of `state` by path (`params/head/kernel/codes`), as they are stored: PRNG keys as their words.

  Raises:
    UserError: naming the path of what cannot be stored as it is.
  """
  leaves = trees.arrays(state)
  if len(leaves) != len(jax.tree.leaves(state)):
    raise errors.UserError('two arrays of the state have the same path; a key must not contain a slash')
  return {path: _stored(path, leaf) for path, leaf in leaves.items()}


def from_stored(array: jax.Array, record: dict[str, Any]) -> jax.Array:
  """The array that `stored_arrays` took and `describe` recorded."""
  return jax.random.wrap_key_data(array, impl=record['key']) if 'key' in record else array


def describe(state: dict[str, Any], sums: dict[str, int] | None = None) -> dict[str, Any]:
  """JSON values that say what every entry of `state` is made of.

  Args:
    state: trees by name, of arrays or ShapeDtypeStructs. `params` consists of dicts, nodes, arrays and None.
    sums: checksums of the stored arrays by path, to be put beside shapes and dtypes.

  Raises:
    UserError: `params` holds something that no manifest can describe.
  """

  def leaf(path, value):
    if not hasattr(value, 'dtype'):
      raise errors.UserError(f'{path} is a {type(value).__name__}; parameters are dicts, nodes and arrays')
    record = {}
    if checksums.is_key(value):
      record, value = {'key': _key_implementation(value)}, jax.eval_shape(jax.random.key_data, value)
    record |= {'dtype': value.dtype.name, 'shape': list(value.shape)}
    return record | ({'checksum': sums[path.rstrip('/')]} if sums else {})

  structure = lambda name, tree: tree if name == PARAMS else trees.arrays(tree)
  # Through JSON and back, so that a description is equal to the one that was read from a file.
  return json.loads(json.dumps({name: nodes.encode(structure(name, tree), leaf, name) for name, tree in state.items()}))


def rebuild(entries: dict[str, Any], leaf: Callable[[str, dict], Any]) -> dict[str, Any]:
  """The described trees with `leaf(path, record)` for arrays: parameters with their nodes, others as {path: array}."""
  at_path = lambda path, record: leaf(path.rstrip('/'), record)
  return {name: nodes.decode(spec, at_path, name) for name, spec in entries.items()}


def by_entry(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
  """Splits {path: value} by the first part of the paths, which names the entry of the state."""
  groups = {}
  for path, value in values.items():
    groups.setdefault(path.partition('/')[0], {})[path] = value
  return groups


def records(entries: dict[str, Any]) -> dict[str, dict]:
  """Dtype, shape, checksum (and for PRNG keys their implementation) of every array in `describe`'s entries, by path."""
  found = {}
  rebuild(entries, found.setdefault)
  return found


def differences(saved: Any, wanted: Any, path: str = '') -> Iterator[str]:
  """How `wanted` disagrees with `saved`, both as `describe` returns them, path by path; checksums are ignored."""
  if not isinstance(saved, dict) or not isinstance(wanted, dict) or '__leaf__' in {**saved, **wanted}:
    if _show(saved) != _show(wanted):
      yield f'{path} is {_show(saved)} in the checkpoint, not {_show(wanted)}'
    return
  for key in {**saved, **wanted}:
    # The keys that `nodes.encode` adds stand between the levels of the tree and would not help a reader.
    below = path if key.startswith('__') else f'{path}/{key}'.strip('/')
    if key in saved and key in wanted:
      yield from differences(saved[key], wanted[key], below)
    else:
      yield f'{below} is in the checkpoint only' if key in saved else f'{below} is not in the checkpoint'


def seal(content: dict[str, Any]) -> dict[str, Any]:
  """The document to save: a copy of `content` and its SHA-256; raises `UserError` for what is not JSON."""
  try:
    text = json.dumps(content, allow_nan=False)
  except (TypeError, ValueError) as error:
    raise errors.UserError(f'the data state or metadata of a checkpoint is not JSON: {error}') from error
  return {'sha256': hashlib.sha256(text.encode()).hexdigest(), 'content': json.loads(text)}


def unseal(document: dict[str, Any]) -> dict[str, Any]:
  """The content of a document that `seal` made; raises `ValueError` if it changed since."""
  if hashlib.sha256(json.dumps(document['content']).encode()).hexdigest() != document['sha256']:
    raise ValueError('the manifest does not have the SHA-256 that it was sealed with')
  return document['content']


def _stored(path, leaf):
  if not isinstance(leaf, (jax.Array, np.ndarray, np.generic)):
    raise errors.UserError(f'{path} is a {type(leaf).__name__}; a checkpoint holds arrays only')
  if leaf.size == 0:
    raise errors.UserError(f'{path} has shape {leaf.shape}; a checkpoint holds no empty arrays')
  if checksums.is_key(leaf):
    return jax.random.key_data(leaf)
  # JAX would turn the 64 bits of a NumPy array into 32.
  narrowed = jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype
  if narrowed or leaf.dtype.name in _UNSTORABLE or jnp.issubdtype(leaf.dtype, jnp.complexfloating):
    raise errors.UserError(f'{path} is {leaf.dtype.name}, which a checkpoint cannot hold; convert it')
  # A copy, since NumPy's arrays may change while they are being written.
  return leaf if isinstance(leaf, jax.Array) else jnp.array(leaf)


def _key_implementation(keys) -> str:
  # Unlike arrays and tracers, a ShapeDtypeStruct is refused by `key_impl`.
  names = []
  jax.eval_shape(lambda k: names.append(jax.random.key_impl(k)), keys)
  return names[0]


def _show(value) -> str:
  if not isinstance(value, dict):
    return repr(value)
  if '__leaf__' in value:
    record = value['__leaf__']
    return f'{record["dtype"]}{record["shape"]}{" of " + record["key"] + " keys" if "key" in record else ""}'
  return value.get('__node__', 'a dict')
