"""Paths into parameter trees: nested dicts with string keys, read and rebuilt without mutation."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxquant import errors

# Linears whose kernel is a table that is looked up row by row, and perhaps a head that reads it transposed.
TABLES = ('embedding', 'positions', 'types')


def get(tree: dict, path: str, default: Any = None) -> Any:
  """The subtree at `path` (`a/b/c`; the empty path is the tree itself), or `default` where there is none."""
  for key in filter(None, path.split('/')):
    if not isinstance(tree, dict) or key not in tree:
      return default
    tree = tree[key]
  return tree


def put(tree: dict, path: str, value: Any) -> dict:
  """A copy of `tree` with `value` at `path`, making the dicts on the way; `value=None` removes the entry."""
  if not path:
    return value
  key, _, rest = path.partition('/')
  if value is None and get(tree, path) is None:
    return tree
  if rest:
    value = put(tree.get(key, {}), rest, value)
  if value is None:
    return {k: v for k, v in tree.items() if k != key}
  return {**tree, key: value}


def walk(tree: Any, path: str = '') -> Iterator[tuple[str, Any]]:
  """Every dict, node and array below and including `tree`, with its path; nodes are not entered."""
  yield path, tree
  if isinstance(tree, dict):
    for key, value in tree.items():
      yield from walk(value, f'{path}/{key}' if path else key)


def linears(params: dict) -> tuple[str, ...]:
  """Paths of all linear layers of a tree: the dicts that hold a `kernel`."""
  return tuple(path for path, value in walk(params) if isinstance(value, dict) and 'kernel' in value)


def is_table(path: str) -> bool:
  """Whether the linear at `path` is a table of rows, which a head that is tied to it reads transposed."""
  return path.rpartition('/')[2] in TABLES


def inputs(params: dict) -> tuple[str, ...]:
  """Paths of all input specifications of a tree that hold a quantizer."""
  return tuple(path for path, value in walk(params) if isinstance(value, dict) and 'quantizer' in value)


def without(params: dict, entry: str) -> dict:
  """The tree whose linear layers lack `entry`, such as `kernel_quantizer`."""
  for path in linears(params):
    params = put(params, f'{path}/{entry}', None)
  return params


def map_nodes(function: Callable[[str, Any], Any], tree: Any) -> Any:
  """Rebuilds `tree` with `function(path, value)` in place of every node and array."""

  def rebuild(path, value):
    if isinstance(value, dict):
      return {key: rebuild(f'{path}/{key}' if path else key, child) for key, child in value.items()}
    return function(path, value)

  return rebuild('', tree)


def arrays(tree: Any) -> dict[str, Any]:
  """All arrays of a tree by path, those inside nodes included (`q/kernel/codes`)."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def check_finite(tree: Any) -> None:
  """Raises `NonFiniteError` naming every floating array of `tree` that holds a NaN or an infinity.

  Arrays that are being traced have no values yet, and pass.
  """
  # One array at a time: dozens of collectives under way can lock up devices that are threads of a CPU of few cores.
  floats = {k: v for k, v in arrays(tree).items()
            if jnp.issubdtype(v.dtype, jnp.floating) and not isinstance(v, jax.core.Tracer)}
  if bad := [path for path, v in floats.items() if not _finite(v)]:
    raise errors.NonFiniteError(f'non-finite values in {", ".join(bad)}')


@jax.jit
def _finite(array):
  return jnp.all(jnp.isfinite(array))


def size(tree: Any) -> int:
  """Number of elements of all arrays of a tree; packed codes count as stored."""
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def matching(pattern: str, paths) -> tuple[str, ...]:
  """The paths that the regular expression `pattern` matches in full."""
  return tuple(path for path in paths if re.fullmatch(pattern, path))
