"""The contract of a quantizer transform.

An optimizer sees a gradient at every step; a quantizer sees activations many times, then rewrites the tree once, and
may decide something static (an axis, a bit width) that cannot be traced. Hence four pure functions:

  init     params -> state                                 shapes only; works under eval_shape
  observe  state, batch -> state                           jitted; states merge (calibration.statistics)
  search   params, state -> params, record, decisions      jitted; decisions are indices of candidates
  rewrite  params, record, decisions -> params             decisions are Python values now and may become static

`params` is the subtree of one block and paths are relative to it. A transform closes over options, never over arrays.
"""

from collections.abc import Callable
from typing import Any, NamedTuple


class Batch(NamedTuple):
  """What a transform observes.

  Attributes:
    ids: int32 [sequences], the identity of every sequence in the calibration set.
    activations: {tap point: [sequences, tokens, features]}; `<site>/input` before the site's input specification,
      `<site>/quantized_input` after it.
  """

  ids: Any
  activations: dict[str, Any]


class Transform(NamedTuple):
  """A quantization method on the linears or sites of one block. See the module's docstring."""

  init: Callable[[Any], Any]
  observe: Callable[[Any, Batch], Any]
  search: Callable[[Any, Any], tuple[Any, dict, dict]]
  rewrite: Callable[[Any, dict, dict], Any] = lambda params, record, decisions: params
