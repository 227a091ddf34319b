"""The grid that a kernel is rounded to: given to a method, or standing in the tree as the linear's `kernel_quantizer`.

Methods that choose a grid (an axis, a number of bits) write it into the tree; methods that round read it there, unless
they are given another, as for a tree that was trained on one grid and is rounded to another. So a method behind one
that chooses is given none.
"""

from typing import Any

from jaxquant import errors
from jaxquant.calibration import transform
from jaxquant.numerics import nodes
from jaxquant.numerics import qtensor
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees


def grid(params: Any, path: str, weight: quantizers.WeightQuantizer | None) -> quantizers.WeightQuantizer:
  """The grid of the linear at `path`: `weight`, or else the one in the tree.

  Raises:
    UserError: there is none, it does not fit the kernel's shape, or the kernel holds codes already.
  """
  layer = trees.get(params, path)
  if nodes.is_node(layer['kernel']):
    raise errors.UserError(f'{path}: already quantized to {layer["kernel"].format.name}')
  weight = weight or layer.get('kernel_quantizer')
  if weight is None:
    raise errors.UserError(f'{path}: no grid to round to; name one, or let a step before this one choose it')
  weight.check(layer['kernel'].shape, path)
  return weight


def name(grid: quantizers.WeightQuantizer) -> str:
  """`int4 g64` for groups of 64 inputs, `int4` for scales of output channels; `by input` for groups of outputs.

  Scales in two levels are behind the groups: `int4 g64 two-level`. `int8 per tensor` has one scale.
  """
  size = '' if grid.group_size is None else f' g{grid.group_size}'
  return f'{grid.format.name}{size}' + ('' if grid.axis == -2 else ' by input') + (
      ' two-level' if grid.two_level else '') + (' per tensor' if grid.per_tensor else '')


def refuse_per_tensor(path: str, weight: quantizers.WeightQuantizer, method: str) -> None:
  """Raises `UserError` for a method that reads scales of outputs, inputs or groups, and is given one for all."""
  if weight.per_tensor:
    raise errors.UserError(f'{path}: {method} works with scales of outputs, inputs or groups; a kernel with one scale '
                           'is rounded to nearest')


def check(claim: transform.Claim, params: Any, weight: quantizers.WeightQuantizer | None) -> None:
  """Raises `UserError` for a claim of linears whose grids do not fit their kernels or the inputs of their products."""
  for path in claim.names:
    site = claim.block.site_of(path)
    specification = {**(trees.get(params, site.name) or {} if site else {}), **trees.get(params, f'{path}/input', {})}
    if grid(params, path, weight).axis != _contracted(path) and 'quantizer' in specification:
      _refuse_to_meet(path)


def check_inputs(claim: transform.Claim, params: Any) -> None:
  """Raises `UserError` for a claim of sites of which one has a quantizer, or is read by a kernel per input channel.

  The codes of a site cannot meet scales, or a grid, that vary along the contraction.
  """
  if taken := [site for site in claim.names if 'quantizer' in (trees.get(params, site) or {})]:
    raise errors.UserError(f'{taken[0]} has a quantizer already')
  for site in claim.block.sites:
    for path in site.consumers if site.name in claim.names else ():
      layer = trees.get(params, path, {})
      kernel = layer.get('kernel')
      grouped = kernel if isinstance(kernel, qtensor.QTensor) else layer.get('kernel_quantizer')
      if grouped is not None and grouped.axis != _contracted(path):
        _refuse_to_meet(path)


def _contracted(path):
  """The axis of a kernel along which its product sums: that of inputs, which a head has last in the table it reads."""
  return -1 if trees.is_table(path) else -2


def _refuse_to_meet(path):
  raise errors.UserError(
      f'{path}: a kernel with scales per input channel cannot meet integer activations, since its scales vary along '
      'the contraction, so that no integer sum can be scaled afterwards; leave the activation unquantized')


def put_kernel(params: Any, path: str, kernel: Any) -> Any:
  """The tree with `kernel` in the linear at `path`, whose grid has been used up."""
  layer = {key: value for key, value in trees.get(params, path).items() if key != 'kernel_quantizer'}
  return trees.put(params, path, {**layer, 'kernel': kernel})
