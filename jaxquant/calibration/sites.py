"""What a model tells calibration about itself, as data: its sites, its blocks, and how they follow each other.

A site is an activation that linear layers read. Each model family declares its own; so does whoever calibrates a
function of their own (README.md has an example).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

SCOPES = ('linears', 'inner', 'module')


class Site(NamedTuple):
  """One activation, relative to the block that holds it.

  Attributes:
    name: path of its input specification and of its tap point, e.g. `attention/input`.
    producer: path of the norm or linear that computes it, into which a scale of its channels can be folded; None if
      there is none (a nonlinearity that does not commute with scales is between them, for one).
    consumers: paths of the linears that read it.
    reads_residual: it is the (normalized) residual stream, where outlier channels gather.
    residual: path of the entry that undoes a fold for the residual branch that reads the producer's output too
      (post-norm blocks); None if no such branch does.
    shifts: whether a shift of its channels can be folded into the producer as well.
    repeats, run: how often each run of the producer's channels is read (grouped key and value heads): channel
      (i * repeats + j) * run + k of the site is channel i * run + k of the producer, for every j < repeats.
    through: names of the operands that carry the producer's channels to the site.
    opens_attention: whether the linears that read it are the queries, keys and values of an attention, whose errors
      meet in its mix (the scope `inner`).
  """

  name: str
  producer: str | None
  consumers: tuple[str, ...]
  reads_residual: bool = False
  residual: str | None = None
  shifts: bool = False
  repeats: int = 1
  run: int = 1
  through: tuple[str, ...] = ()
  opens_attention: bool = False


class Block(NamedTuple):
  """A part of a model that is calibrated at once. Static and hashable; one object for all blocks of a shape.

  Attributes:
    sites: the activations its linears read, in the order in which they are computed.
    forward: (params, inputs) -> outputs.
    taps: (params, inputs) -> (outputs, activations of a `transform.Batch`).
    judge: (site name, scope, params, activation of the site before its input specification) -> the output that a
      search compares, [sequences, tokens, features], by scope, one of `SCOPES`:
      `linears`  what the linears that read the site put out, side by side;
      `inner`    what the last linear of the module (attention, MLP) reads: the attention's mix, the gated product;
      `module`   what the whole module puts out.
      The site of a module's last linear has that linear's output for each.
    operands: activations that meet each other, not a kernel: those of attention. Each has a specification and tap
      points like a site, but neither producer nor consumers, and [sequences, tokens, heads, head features].
  """

  sites: tuple[Site, ...]
  forward: Callable[[Any, Any], Any]
  taps: Callable[[Any, Any], tuple[Any, dict[str, Any]]]
  judge: Callable[[str, str, Any, Any], Any] | None = None
  operands: tuple[Site, ...] = ()

  def site(self, name: str) -> Site:
    """The site, or the operand, called `name`."""
    return next(site for site in (*self.sites, *self.operands) if site.name == name)

  def site_of(self, linear: str) -> Site | None:
    """The site that the linear at path `linear` reads, if it is any (an embedding only looks rows up)."""
    return next((site for site in self.sites if linear in site.consumers), None)


class StagedModel(NamedTuple):
  """A model cut into blocks.

  Attributes:
    embed: (params without the blocks, token ids) -> inputs of the first block.
    blocks: (path of the block's subtree, Block) in order; the last, at the root (''), is what follows the layers.
    check: (subtree of a block before a step on sites, after it, a batch), called after each where nobody else has
      tested what the sites say of the block: raises `UserError` if the step left what the block does not read, or a
      fold changed what it computes. None for models whose tests do that.
  """

  embed: Callable[[Any, Any], Any]
  blocks: tuple[tuple[str, Block], ...]
  check: Callable[[Any, Any, Any], None] | None = None


def ready(site: str) -> str:
  """The tap point behind the input specification of a site: `quantized_input` for `input`."""
  head, _, last = site.rpartition('/')
  return f'{head}/quantized_{last}' if head else f'quantized_{last}'
