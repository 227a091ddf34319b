"""Nodes: frozen dataclasses that live in a parameter tree, some fields arrays, the others static metadata.

A node is registered with JAX, so that jit, grad, remat and shardings see its arrays at clean paths
(`layers/0/attention/q/kernel/codes`), and by name, so that a checkpoint can write down what a tree is made of and
rebuild it. Static values are JSON scalars or number formats.
"""

import dataclasses
from typing import Any

import jax

from jaxquant import errors
from jaxquant.numerics import formats

_TYPES: dict[str, type] = {}
_NODE, _LEAF, _FORMAT = '__node__', '__leaf__', '__format__'


def node(*arrays: str):
  """Class decorator: a frozen dataclass whose fields named in `arrays` are children, all others static metadata."""

  def register(cls):
    cls = dataclasses.dataclass(frozen=True)(cls)
    meta = [f.name for f in dataclasses.fields(cls) if f.name not in arrays]
    cls.array_fields, cls.static_fields = tuple(arrays), tuple(meta)
    _TYPES[cls.__name__] = cls
    return jax.tree_util.register_dataclass(cls, data_fields=list(arrays), meta_fields=meta)

  return register


def is_node(value: Any) -> bool:
  """Whether `value` is an instance of a registered node type."""
  return type(value) in _TYPES.values()


def encode(tree: Any, leaf=lambda path, value: None, path: str = '') -> Any:
  """The structure of `tree` as JSON values.

  Args:
    tree: nested dicts with string keys, nodes, arrays and None.
    leaf: called with the path and value of every array; what it returns (JSON) stands in its place.
    path: path of `tree` itself, a prefix of every leaf's.

  Returns:
    Dicts for dicts, `{"__node__": type, **fields}` for nodes, `{"__leaf__": leaf(...)}` for arrays.
  """
  join = lambda key: f'{path}/{key}' if path else key
  if tree is None:
    return None
  if isinstance(tree, dict):
    return {key: encode(value, leaf, join(key)) for key, value in tree.items()}
  if is_node(tree):
    fields = {name: encode(getattr(tree, name), leaf, join(name)) for name in tree.array_fields}
    fields.update({name: _encode_static(getattr(tree, name)) for name in tree.static_fields})
    return {_NODE: type(tree).__name__, **fields}
  return {_LEAF: leaf(path, tree)}


def decode(spec: Any, leaf, path: str = '') -> Any:
  """Rebuilds what `encode` described; `leaf(path, value)` makes an array from what the encoder's `leaf` returned."""
  join = lambda key: f'{path}/{key}' if path else key
  if spec is None:
    return None
  if _LEAF in spec:
    return leaf(path, spec[_LEAF])
  if _NODE in spec:
    cls = _TYPES.get(spec[_NODE])
    if cls is None or set(spec) - {_NODE} != {*cls.array_fields, *cls.static_fields}:
      raise errors.CheckpointError(f'{path}: unknown node {spec[_NODE]!r} with fields {sorted(set(spec) - {_NODE})}')
    fields = {name: decode(spec[name], leaf, join(name)) for name in cls.array_fields}
    fields.update({name: _decode_static(spec[name]) for name in cls.static_fields})
    return cls(**fields)
  return {key: decode(value, leaf, join(key)) for key, value in spec.items()}


def _encode_static(value):
  return {_FORMAT: value.name} if isinstance(value, formats.Format) else value


def _decode_static(value):
  return formats.parse(value[_FORMAT]) if isinstance(value, dict) else value
