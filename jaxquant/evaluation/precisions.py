"""The precisions of the comparison, each a rewrite of one calibrated tree.

A range learned in training is part of what the model computes: it was trained with the clipping, and without it fails.
So where ranges were learned, activations of 16 bits are clipped to them and not rounded, and dynamic ranges are taken
from the clipped activation. Ranges calibrated after training leave 16-bit and dynamic activations alone.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxquant import errors
from jaxquant.numerics import formats
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.report import tables
from jaxquant.transforms import grids

MODES = ('none', 'static', 'dynamic')

# One program a shape of kernels; operation by operation, they took a fourth of what a small comparison takes.
_quantized = jax.jit(quantizers.WeightQuantizer.quantized)
_NAME = re.compile('W([2-8]|16)A(?:(16)|([2-8]) (static|dynamic))')


class Precision(NamedTuple):
  """Bits of weights, activations, and attention's values and keys; 16 means not quantized, whatever the compute type.

  Attributes:
    weights: bits of the kernels' codes; a fraction where it describes kernels that differ.
    activations: bits of the activations' codes.
    mode: `none` without activation codes, `static` ranges, or `dynamic` ones, per token.
    values, keys: bits of the codes of the values that attention mixes, and of the keys beside them.
  """

  weights: float = 16
  activations: int = 16
  mode: str = 'none'
  values: int = 16
  keys: int = 16

  @property
  def record(self) -> dict[str, Any]:
    """What an evaluation says of it (jaxquant.report)."""
    operands = {'values': self.values, 'keys': self.keys}
    return {'weights': self.weights, 'activations': self.activations, 'activation_mode': self.mode,
            **{name: bits for name, bits in operands.items() if bits < 16}}

  @property
  def name(self) -> str:
    """`W4A4 static`, `W4A8V4 dynamic`, or `W4A4KV8 dynamic`."""
    return tables.precision(self.record)


def standard(weights: int = 4, activations: int = 4) -> tuple[Precision, ...]:
  """Full precision, either part quantized alone, and both with static and with dynamic ranges."""
  return (
      Precision(), Precision(16, activations, 'static'), Precision(weights, 16),
      Precision(weights, activations, 'static'), Precision(weights, activations, 'dynamic'))


def parse(name: str) -> Precision:
  """The precision called `name`, as `Precision.name` has it, without operands; `UserError` for a name that is none."""
  if not (match := _NAME.fullmatch(name)):
    raise errors.UserError(f'unknown precision {name!r}; there are W16A16, W4A16, W16A8 static, W4A4 dynamic and the '
                           'like, with 2 to 8 bits')
  weights, _, activations, mode = match.groups()
  return Precision(int(weights), int(activations or 16), mode or 'none')


def named(names: Sequence[str], weights: int = 4, activations: int = 4) -> tuple[Precision, ...]:
  """The precisions called `names` (`parse`), each once; the standard ones for none."""
  return tuple(dict.fromkeys(map(parse, names))) or standard(weights, activations)


def rewrite(
    params: Any, precision: Precision, *, learned: bool, weight_pattern: str = r'layers/.*',
    group_size: int | None = None, sites: Sequence[str] = ()) -> Any:
  """The tree of `params` at `precision`.

  Args:
    params: a float tree whose quantized sites hold static quantizers, learned or calibrated; which sites are
      quantized, at any precision, is read from it. Without any it is given dynamic ranges at `sites`.
    precision: the target. The static ranges must be of its activation bits.
    learned: whether the ranges were learned in training.
    weight_pattern: linears to round, to symmetric codes, a regular expression on the whole path.
    group_size: inputs that share a weight scale; None: one per output channel.
    sites: names of sites.

  Returns:
    A tree for `models.decoder`.

  Raises:
    UserError: no site is quantized, or a static range is missing or of other bits.
    NonFiniteError: weights or ranges are not finite, by path.
  """
  trees.check_finite(params)
  sites = trees.inputs(params) or (sites if precision.mode == 'dynamic' else ())
  if precision.mode != 'none' and not sites:
    raise errors.UserError(f'{precision.mode} activations need calibrated or learned ranges, and the tree has none')
  for site in sites if precision.mode == 'static' else ():
    if getattr(trees.get(params, site)['quantizer'], 'bits', None) != precision.activations:
      raise errors.UserError(f'{site}: there is no static range of {precision.activations} bits')
  if precision.mode != 'static':
    params = with_inputs(params, sites, precision, learned)
  params = trees.without(params, 'kernel_quantizer')
  if precision.weights < 16:
    linears = trees.matching(weight_pattern, trees.linears(params))
    weight = quantizers.WeightQuantizer(formats.IntFormat(precision.weights), group_size=group_size)
    for path in linears:
      kernel = _quantized(grids.grid(params, path, weight), trees.get(params, path)['kernel'])
      params = grids.put_kernel(params, path, kernel)
  return params


def with_inputs(params: Any, sites, precision: Precision, learned: bool) -> Any:
  """The tree with other quantizers at `sites`: dynamic ones, asymmetric and per token, or none for mode `none`.

  Where ranges were `learned`, their ends stay as a clip.
  """
  for site in sites:
    specification = dict(trees.get(params, site) or {})
    quantizer = specification.pop('quantizer', None)
    if learned and hasattr(quantizer, 'ends'):
      specification['clip'] = jnp.stack(quantizer.ends())
    if precision.mode == 'dynamic':
      fmt = formats.IntFormat(precision.activations, symmetric=False)
      specification['quantizer'] = quantizers.DynamicQuantizer(fmt)
    params = trees.put(params, site, specification or None)
  return params
