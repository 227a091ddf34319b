"""What a model tells calibration about itself, as data: its sites, its blocks, and how they follow each other.

A site is an activation that linear layers read. Each model family declares its own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple


class Site(NamedTuple):
  """One activation, relative to the block that holds it.

  Attributes:
    name: path of its input specification and of its tap point, e.g. `attention/input`.
    producer: path of the norm or linear that computes it, into which a shift or scale can be folded; None if there is
      none (the output of attention's mix of several tensors, for one).
    consumers: paths of the linears that read it.
    reads_residual: it is the (normalized) residual stream, where outlier channels gather.
    feeds_residual: a residual branch reads it too (post-norm blocks), so folding must compensate there.
  """

  name: str
  producer: str | None
  consumers: tuple[str, ...]
  reads_residual: bool = False
  feeds_residual: bool = False


class Block(NamedTuple):
  """A part of a model that is calibrated at once. Static and hashable; one object for all blocks of a shape.

  Attributes:
    sites: the activations its linears read.
    forward: (params, inputs) -> outputs.
    taps: (params, inputs) -> (outputs, activations of a `transform.Batch`).
  """

  sites: tuple[Site, ...]
  forward: Callable[[Any, Any], Any]
  taps: Callable[[Any, Any], tuple[Any, dict[str, Any]]]


class StagedModel(NamedTuple):
  """A model cut into blocks.

  Attributes:
    embed: (params, token ids) -> inputs of the first block.
    blocks: (path of the block's subtree, Block) in order; the last, at the root (''), is what follows the layers.
  """

  embed: Callable[[Any, Any], Any]
  blocks: tuple[tuple[str, Block], ...]
