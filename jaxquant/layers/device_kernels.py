"""Kernels of linear layers as the matmuls of a GPU read them: made of a tree when it is loaded, never saved.

`laid_out` rewrites a quantized tree; `linear` evaluates the result like the original, through `kernels`. A checkpoint
is written from the original: this type has no name there.
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp

import kernels
from jaxquant import errors
from jaxquant.layers import device_quantizers
from jaxquant.numerics import formats
from jaxquant.numerics import qtensor
from jaxquant.numerics import quantize
from jaxquant.numerics import trees
from jaxquant.numerics import two_level
from kernels import checks
from kernels import dint
from kernels import gates
from kernels import integer_weights
from kernels import layouts

# Linears that read one activation, by what stands for them once their kernels are joined.
JOINED = {'qkv': ('q', 'k', 'v'), 'gate_up': ('gate', 'up')}
_GATED = 'gate_up'
# Those whose activation the specification of the module above them prepares; `o` and `down` read what follows.
_SHARING = frozenset(itertools.chain(*JOINED.values()))

# Of more inputs, a sum of products of integers of 8 bits may exceed int32: their groups are summed one by one.
_MOST_INPUTS = checks.LARGEST_INT32 >> 14

# Implementations (layers.linear) that may run a GPU's kernels.
OF_GPUS = ('auto', 'mosaic_gpu')


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=['codes', 'scale', 'offset', 'column_sums', 'zero_point', 'multiplier'],
    meta_fields=['layout', 'bits', 'shape', 'special', 'paired'])
@dataclasses.dataclass(frozen=True)
class DeviceKernel:
  """Integers with scales and offsets, as `kernels.quantized_matmul` takes them: value = scale * integer + offset.

  In the layout DINT4 the integers are those that its codes and zero points stand for (kernels.dint). With two-level
  scales (numerics.two_level) they are multiplier * code.

  Attributes:
    codes: int8 in `layout`.
    scale: float32 [groups, out]; of two-level scales, the bases [1, out].
    offset: like `scale`, or None for zero.
    column_sums: float32 [out], the sums of the values over the inputs, or None where no activation has an offset.
    layout: how the codes lie in memory.
    bits: of an integer, or of a code that multipliers multiply.
    shape: (in, out).
    zero_point: int32 like `scale` in the layout DINT4, else None.
    special: of the layout DINT4, the magnitude of the special codes' values in steps.
    multiplier: int32 [groups, out] of two-level scales, in the layout INT4, else None.
    paired: whether runs of both halves of the outputs, a gate and what it multiplies, take turns (kernels.gates).
  """

  codes: Any
  scale: Any
  offset: Any
  column_sums: Any
  layout: kernels.Layout
  bits: int
  shape: tuple[int, int]
  zero_point: Any = None
  special: float = 1 / 2
  multiplier: Any = None
  paired: bool = False

  @property
  def ndim(self) -> int:
    """The rank: 2."""
    return len(self.shape)

  def dense(self, dtype=jnp.float32):
    """The values, [in, out] of `dtype`."""
    spread = lambda a: quantize.spread(a, -2, self.shape[0])
    values = integer_weights.integers(
        self.codes, self.layout, self.shape, self.zero_point, self.special, self.multiplier)
    values = values.astype(jnp.float32) * spread(self.scale)
    return self.in_order(values if self.offset is None else values + spread(self.offset)).astype(dtype)

  def in_order(self, outputs):
    """[..., out] with the halves of pairs behind each other."""
    return jnp.concatenate(gates.halves(outputs), axis=-1) if self.paired else outputs


def integers(kernel: qtensor.QTensor):
  """(integers, scale, offset, bits), values = scale * integers + offset, as `kernels.quantized_matmul` takes them."""
  fmt = kernel.format
  if isinstance(fmt, formats.DIntFormat):
    # Special codes know no zero point, so that no offset serves all codes: it goes into the integers.
    zero_point = quantize.spread(kernel.zero_point, kernel.axis, kernel.size)
    multiples = quantize.multiples(kernel.unpacked(), zero_point, fmt)
    dtype = jnp.int8 if fmt.multiple_bits <= 8 else jnp.int16
    return multiples.astype(dtype), kernel.scale * fmt.resolution, None, fmt.multiple_bits
  shift = 0 if fmt.symmetric else 2 ** (fmt.bits - 1)
  codes = (kernel.unpacked().astype(jnp.int32) - shift).astype(jnp.int8)
  offset = None if kernel.zero_point is None else (shift - kernel.zero_point.astype(jnp.float32)) * kernel.scale
  return codes, kernel.scale, offset, fmt.bits


def prepared(params: dict, implementation: str) -> dict:
  """The tree as `implementation` (layers.linear) reads it fastest here: laid out where it may run a GPU's kernels."""
  return laid_out(params) if implementation in OF_GPUS and _runs_kernels() else params


def _runs_kernels() -> bool:
  """Whether this process' device runs what layouts are for: for any other, XLA would unpack them at each call."""
  try:
    kernels.check_device()
  except NotImplementedError:
    return False
  return True


def laid_out(params: dict) -> dict:
  """The tree with the kernels of its linear layers laid out for a GPU.

  Weights of at most 4 bits stay packed, for 8-bit products where the layer's activation is quantized, at the layer or,
  for the linears in `JOINED`, at the site above it, and else for 16-bit ones; weights of 5 to 8 bits take a byte. Codes
  of dINT of 3 and 4 bits stay packed for 8-bit products, unless their integers need 8 bits (dint4/8), which then take a
  byte each. Two-level scales of groups (numerics.two_level) become a base and integers for 8-bit products, whose sums
  then run over all inputs at once. Others, tables, and kernels with scales per input stay as they are. What quantizes
  the activations of a kernel that is laid out sums their codes for it (layers.device_quantizers). Linears of `JOINED`
  that are alike become one, with the outputs of all behind each other: one kernel in place of some that are too short
  to fill a GPU; those of a gate and of what it multiplies take turns, for a kernel that computes the gate. The offset
  of a static range goes into the biases of its linears, where all are laid out.

  Raises:
    UserError: a zero point of dINT codes lies beyond them, so that their integers may exceed 8 bits.
  """
  sites, readers = set(trees.inputs(params)), {}
  for path in trees.linears(params):
    kernel = trees.get(params, path)['kernel']
    parent, _, name = path.rpartition('/')
    above = {_below(path, 'input'), *([_below(parent, 'input')] if name in _SHARING else [])} & sites
    takes = isinstance(kernel, qtensor.QTensor) and kernel.ndim == 2 and kernel.axis == -2 and not trees.is_table(name)
    converted = _convert(kernel, bool(above), path) if takes else None
    if converted is not None:
      params = trees.put(params, _below(path, 'kernel'), converted)
    for site in above:
      readers.setdefault(site, {})[path] = converted
  for site, kernels_of in readers.items():
    params = _site_converted(params, site, kernels_of)
  for path, parent in list(trees.walk(params)):
    for name, parts in JOINED.items() if isinstance(parent, dict) else ():
      if _alike(linears := [parent.get(part) for part in parts], paired := name == _GATED):
        rest = {key: value for key, value in parent.items() if key not in parts}
        params = trees.put(params, path, parent := rest | {name: _join(linears, paired)})
  return params


def _below(place: str, entry: str) -> str:
  """The path of an entry; that of the tree itself is empty."""
  return f'{place}/{entry}' if place else entry


def _site_converted(params: dict, site: str, readers: dict[str, DeviceKernel | None]) -> dict:
  """The tree with what quantizes at a site for its linears, by path; None stands for one that is not laid out."""
  laid = [kernel for kernel in readers.values() if kernel is not None]
  specification = trees.get(params, site)
  static = device_quantizers.static_range(specification) if len(laid) == len(readers) else None
  if static is not None and static.offset is not None:
    for path, kernel in readers.items():
      bias = layouts.fold_offset(trees.get(params, path).get('bias'), static.offset, kernel.column_sums)
      params = trees.put(params, _below(path, 'bias'), bias)
  groups = [(kernel.shape[0], kernel.scale.shape[0]) for kernel in laid]
  converted = device_quantizers.converted(specification, groups, static)
  if not getattr(converted['quantizer'], 'has_offset', True):  # an array less that each call of a model hands over
    for path, kernel in readers.items():
      if kernel is not None:
        params = trees.put(params, _below(path, 'kernel'), dataclasses.replace(kernel, column_sums=None))
  return trees.put(params, site, converted)


def _alike(linears: list[dict | None], paired: bool) -> bool:
  """Whether linears are laid out in one way, of one width if paired, and hold nothing but that and biases."""
  def kind(linear):
    kernel = linear.get('kernel') if isinstance(linear, dict) else None
    if not isinstance(kernel, DeviceKernel) or set(linear) - {'kernel', 'bias'} or kernel.shape[1] % layouts.PADDING:
      return None
    return (kernel.layout, kernel.bits, kernel.special, kernel.shape[0], len(kernel.scale), kernel.offset is None,
            kernel.column_sums is None, kernel.multiplier is not None and len(kernel.multiplier), 'bias' in linear,
            paired and kernel.shape[1])

  kinds = {kind(linear) for linear in linears}
  return len(kinds) == 1 and None not in kinds


def _join(linears: list[dict], paired: bool) -> dict:
  """One linear of the outputs of all, in turns where they are paired."""
  parts = [linear['kernel'] for linear in linears]
  join = lambda arrays, axis: gates.paired(*arrays, axis) if paired else jnp.concatenate(arrays, axis)
  along = lambda axis, name: None if getattr(parts[0], name) is None else join(
      [getattr(kernel, name) for kernel in parts], axis)
  joined = {'kernel': dataclasses.replace(
      parts[0], codes=along(0, 'codes'), scale=along(1, 'scale'), offset=along(1, 'offset'),
      column_sums=along(0, 'column_sums'), zero_point=along(1, 'zero_point'), multiplier=along(1, 'multiplier'),
      shape=(parts[0].shape[0], sum(kernel.shape[1] for kernel in parts)), paired=paired)}
  if 'bias' in linears[0]:
    joined['bias'] = join([linear['bias'] for linear in linears], 0)
  return joined


def _convert(kernel: qtensor.QTensor, quantized: bool, path: str) -> DeviceKernel | None:
  """The kernel for a quantized activation or for one that is not; None if there is no layout for it."""
  fmt = kernel.format
  of_dint = isinstance(fmt, formats.DIntFormat)
  bits = fmt.multiple_bits if of_dint else fmt.bits
  if bits > (8 if quantized else 4):
    return None
  if of_dint and (largest := int(kernel.zero_point.max())) > fmt.maximum:
    raise errors.UserError(f'{path}: zero points of {fmt.name} go up to {fmt.maximum}, and one is {largest}')
  if of_dint and fmt.storage_bits == 4 and bits <= 7:
    layout = kernels.Layout.DINT4
  elif bits > 4:
    layout = kernels.Layout.ROWS
  else:
    layout = kernels.Layout.INT4 if quantized else kernels.Layout.INT4_WIDE
  special = fmt.special if layout is kernels.Layout.DINT4 else DeviceKernel.special
  *arrays, zero_point = _arrays(kernel, layout)
  made = DeviceKernel(*arrays, layout, bits, kernel.shape, zero_point, special)
  if not quantized:
    return dataclasses.replace(made, column_sums=None)
  if layout is kernels.Layout.INT4 and made.offset is None and kernel.groups > 1 and kernel.size <= _MOST_INPUTS:
    if (levels := two_level.levels(made.scale)) is not None:
      base, multiplier = map(jnp.asarray, levels)
      made = dataclasses.replace(made, scale=base, multiplier=multiplier)
  return made


@functools.partial(jax.jit, static_argnames='layout')
def _arrays(kernel: qtensor.QTensor, layout: kernels.Layout):
  """(codes, scale, offset, column sums, zero point) of a `DeviceKernel`; compiled once for all kernels alike."""
  multiples, scale, offset, _ = integers(kernel)
  wide = lambda a: None if a is None else jnp.broadcast_to(a, (a.shape[0], multiples.shape[1]))
  codes, scale, offset, zero_point = multiples, wide(scale), wide(offset), None
  if layout is kernels.Layout.DINT4:
    codes, zero_point = dint.widened(kernel.unpacked(), kernel.format.plus), wide(kernel.zero_point.astype(jnp.int32))
  return layouts.prepack(codes, layout), scale, offset, layouts.column_sums(multiples, scale, offset), zero_point
