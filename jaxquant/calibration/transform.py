"""The contract of a quantizer transform.

An optimizer sees a gradient at every step; a quantizer sees activations many times, then rewrites the tree once, and
may decide something static (an axis, a bit width) that cannot be traced. Hence four pure functions:

  init     params, shapes of a batch -> state              shapes only; works under eval_shape
  observe  state, batch -> state                           jitted; states merge (calibration.statistics)
  search   params, state -> params, record, decisions      jitted; decisions are indices of candidates
  rewrite  params, record, decisions -> params             decisions are Python values now and may become static

`params` is the subtree of one block and paths are relative to it. A transform closes over options, never over arrays.
A method is a factory: options are bound by functools.partial, and the driver calls it with what it owns in a block.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxquant import errors
from jaxquant.calibration import sites


class Claim(NamedTuple):
  """What a transform owns in a block. Hashable: equal claims in equal blocks share one transform, hence one compile.

  Attributes:
    names: paths of linears, or names of sites or operands, relative to the block.
    block: the block.
  """

  names: tuple[str, ...]
  block: sites.Block

  @property
  def sites(self) -> tuple[sites.Site, ...]:
    """The sites, or the operands, called `names`."""
    return tuple(self.block.site(name) for name in self.names)

  def judge(self) -> Callable[[str, str, Any, Any], Any]:
    """The block's judge (`sites.Block`), for a method that searches.

    Raises:
      UserError: it has none.
    """
    if self.block.judge is None:
      raise errors.UserError(f'{self.names[0]}: its block has no judge, so that no search can compare what comes of it')
    return self.block.judge

  def by_site(self) -> dict[str, tuple[str, ...]]:
    """{name of a site: the claimed linears that read it}, in the order in which they are computed.

    Raises:
      UserError: a linear that reads no site, so that nothing is known of its input.
    """
    if lost := [name for name in self.names if self.block.site_of(name) is None]:
      raise errors.UserError(f'{lost[0]} reads no site of its block, so it cannot be calibrated')
    read = {site.name: tuple(name for name in site.consumers if name in self.names) for site in self.block.sites}
    return {site: linears for site, linears in read.items() if linears}


class Batch(NamedTuple):
  """What a transform observes.

  Attributes:
    ids: int32 [sequences], the identity of every sequence in the calibration set.
    activations: {tap point: [sequences, tokens, features]}; `<site>` before the site's input specification,
      `sites.ready(<site>)` after it, as the products read it. Operands are [sequences, tokens, heads, head features].
    teacher: the same of the full-precision model, for transforms that need it; else None.
  """

  ids: Any
  activations: dict[str, Any]
  teacher: dict[str, Any] | None = None

  def activation(self, point: str):
    """That of a tap point; raises `UserError` for one that the block does not observe."""
    if point not in self.activations:
      raise errors.UserError(f'{point} is not observed in its block, so nothing is known of it')
    return self.activations[point]


class Transform(NamedTuple):
  """A quantization method on the linears or sites of one block. See the module's docstring.

  Attributes:
    init, observe, search, rewrite: the four functions.
    needs_teacher: whether `observe` reads the full-precision stream beside the one that the step observes.
    needs_data: whether there is anything to observe; without, no batch is run, and `init` is given None for one.
    warn: (rewritten params, record) -> {name: what a user should know of it}, such as that the data hardly suffices.
  """

  init: Callable[[Any, Batch | None], Any]
  observe: Callable[[Any, Batch], Any]
  search: Callable[[Any, Any], tuple[Any, dict, dict]]
  rewrite: Callable[[Any, dict, dict], Any] = lambda params, record, decisions: params
  needs_teacher: bool = False
  needs_data: bool = True
  warn: Callable[[Any, dict], dict[str, str]] = lambda params, record: {}


def without_data(search: Callable[[Any], tuple[Any, dict, dict]], check: Callable[[Any], None]) -> Transform:
  """A transform that observes nothing: `check` sees the params first, then `search` rewrites them."""

  def init(params, batch):
    del batch
    check(params)
    return {}

  return Transform(init, lambda state, batch: state, lambda params, state: search(params), needs_data=False)
