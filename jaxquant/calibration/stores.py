"""Where blocks come from and where finished ones go, so that a model never has to be in memory as a whole."""

from typing import Any, Protocol, runtime_checkable

import jax

from jaxquant.calibration import sites
from jaxquant.numerics import trees


@runtime_checkable
class Source(Protocol):
  """Where the float blocks come from."""

  def abstract(self) -> dict:
    """The whole tree as shapes."""

  def load(self, path: str) -> dict:
    """The subtree of the block at `path`; for '' the tree without all other blocks."""

  def assemble(self, finished: dict[str, dict]) -> Any:
    """The result of a run, out of {path: finished subtree}."""


class Store(Protocol):
  """Where finished blocks are kept, for a run that is interrupted."""

  def finished(self, path: str) -> tuple[dict, dict] | None:
    """(subtree, decisions) of the block at `path` if an earlier run of the same model, data and steps finished it."""

  def save(self, path: str, params: dict, decisions: dict) -> None:
    """Keeps a finished block."""


class InMemory:
  """The source that is a whole tree."""

  def __init__(self, params: dict, model: sites.StagedModel):
    self._params, self._paths = params, [path for path, _ in model.blocks if path]

  def abstract(self) -> dict:
    """The whole tree as shapes."""
    return jax.eval_shape(lambda tree: tree, self._params)

  def load(self, path: str) -> dict:
    """The subtree of the block at `path`; for '' the tree without all other blocks."""
    if path:
      return trees.get(self._params, path)
    root = self._params
    for block in self._paths:
      root = trees.put(root, block, None)
    return root

  def assemble(self, finished: dict[str, dict]) -> dict:
    """The whole tree again."""
    root = finished.get('', self.load(''))
    for path in self._paths:
      root = trees.put(root, path, finished.get(path, trees.get(self._params, path)))
    return root


class Nowhere:
  """The store that keeps nothing."""

  def finished(self, path: str) -> None:
    """None: nothing is kept."""

  def save(self, path: str, params: dict, decisions: dict) -> None:
    """Does nothing."""
