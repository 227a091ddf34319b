"""A `jax.jit` that hands arrays through: what a function returns of its first argument unchanged is not copied.

Of a block of a model a transform may change a single kernel, while `jax.jit` would return a copy of every array.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax


@functools.partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=['index'])
@dataclasses.dataclass(frozen=True)
class _Given:
  """Stands for the index-th array of the first argument in the tree that a compiled function returns."""

  index: int


class Jit:
  """A compiled function of a tree and whatever else."""

  def __init__(self, function: Callable[..., Any], compiler_options: dict[str, Any] | None = None):
    """Compiles `function` when it is called first, as `jax.jit` does with the same options."""

    def marked(tree, *arguments):
      given = {id(leaf): _Given(i) for i, leaf in enumerate(jax.tree.leaves(tree))}
      return jax.tree.map(lambda leaf: given.get(id(leaf), leaf), function(tree, *arguments))

    self._jitted = jax.jit(marked, compiler_options=compiler_options)

  def __call__(self, tree: Any, *arguments: Any) -> Any:
    """What the function returns; arrays of `tree` in it are the very objects."""
    return _filled(self._jitted(tree, *arguments), tree)

  def eval_shape(self, tree: Any, *arguments: Any) -> Any:
    """The same as ShapeDtypeStructs; those of `tree`, which has to consist of them, are the very objects."""
    return _filled(self._jitted.eval_shape(tree, *arguments), tree)


def _filled(made, tree):
  given, marks = jax.tree.leaves(tree), lambda leaf: isinstance(leaf, _Given)
  return jax.tree.map(lambda leaf: given[leaf.index] if marks(leaf) else leaf, made, is_leaf=marks)
