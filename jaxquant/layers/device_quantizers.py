"""Input quantizers of a tree that is laid out for a GPU: one kernel per activation, with the sums that products need.

Offsets of weights meet the sums of the activation's codes over the weights' groups, which a quantizer has at hand when
it rounds. A norm that stands before it, a shift, a scale and a transform of channels are taken into the kernel too.
Ranges that are static, or those of groups of features, stay with XLA, which fuses the former into whatever makes the
activation; the lower end of a static range goes into the biases of the linears that read it.
"""

import dataclasses
import functools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

import kernels
from jaxquant.layers import norms
from jaxquant.numerics import codes as codes_lib
from jaxquant.numerics import quantizers
from kernels import before as preceding

# Products sum the codes of so many inputs at a time, or of a part of them that divides a group.
_STEP = 128


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=['shift', 'scale'],
    meta_fields=['hadamard', 'bits', 'symmetric', 'run'])
@dataclasses.dataclass(frozen=True)
class DeviceQuantizer:
  """Per-token ranges, as `DynamicQuantizer` takes them: by a GPU's kernel, a code on an edge may be its neighbor.

  Attributes:
    shift, scale: float32 [features], subtracted and divided by before, or None.
    hadamard: features that are transformed together behind these, 1 for none.
    bits: bits of a code.
    symmetric: whether there is no offset.
    run: features whose codes are summed.
  """

  shift: Any
  scale: Any
  hadamard: int
  bits: int
  symmetric: bool
  run: int

  takes_norms: ClassVar[bool] = True
  gates: ClassVar[frozenset[str]] = frozenset(preceding.GATES)

  def codes(self, x) -> codes_lib.Codes:
    """Integer codes of `x` [..., features], which may be an `inputs.Pending` gate or a `norms.Normed`; their sums."""
    return self.codes_and_total(x)[0]

  def codes_and_total(self, x) -> tuple[codes_lib.Codes, Any]:
    """(`codes`, the array that the norm or the gate is of, if there is one, with what is added to it)."""
    before, addend = kernels.Before(shift=self.shift, scale=self.scale, hadamard=self.hadamard), None
    if isinstance(x, norms.Normed):
      before = before._replace(norm=x.kind, gain=x.scale, bias=x.bias, epsilon=x.epsilon)
      x, addend = x.x if isinstance(x.x, norms.Sum) else (x.x, None)
    elif getattr(x, 'gate', None):
      before = before._replace(gate=x.gate)
      x, = x.arrays
    got = kernels.quantize_activations(
        x, bits=self.bits, symmetric=self.symmetric, before=before, group_size=self.run, addend=addend,
        implementation=None)
    codes = codes_lib.Codes(got.codes, got.scale, got.offset, self.bits, got.row_sums)
    return codes, x if addend is None else got.total

  def __call__(self, x):
    codes, total = self.codes_and_total(x)
    return codes_lib.values(codes).astype(total.dtype)


@functools.partial(jax.tree_util.register_dataclass, data_fields=['quantizer'], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class FoldedQuantizer:
  """A static range whose offset is in the biases of the linears that read it: value = scale * code.

  What else reads its values, such as a tap, finds them without the offset.

  Attributes:
    quantizer: the one of the range.
  """

  quantizer: Any

  def codes(self, x) -> codes_lib.Codes:
    """Integer codes of `x` [..., features], as the quantizer gives them, without their offset."""
    return dataclasses.replace(self.quantizer.codes(x), offset=None)

  def __call__(self, x):
    return codes_lib.values(self.codes(x)).astype(x.dtype)


def static_offset(specification: dict[str, Any]):
  """The offset, a float32 scalar, of the codes of a static range for the whole activation; None if there is none."""
  quantizer = specification['quantizer']
  if not isinstance(quantizer, (quantizers.ClipQuantizer, quantizers.PactQuantizer)):
    return None
  offset = quantizer.codes(jnp.zeros(1)).offset  # the same for any activation
  return None if offset.ndim else offset


def folded(specification: dict[str, Any]) -> dict[str, Any]:
  """The specification of an activation whose `static_offset` is in the biases of all that read it."""
  return specification | {'quantizer': FoldedQuantizer(specification['quantizer'])}


def converted(specification: dict[str, Any], groups: list[tuple[int, int]]) -> dict[str, Any]:
  """The input specification with a quantizer for a GPU, or as it is if there is none for it.

  Args:
    specification: see `layers.inputs`, with a quantizer.
    groups: (inputs, groups of inputs) of each kernel that reads the activation and is laid out for a GPU.
  """
  quantizer = specification['quantizer']
  if (not groups or not isinstance(quantizer, quantizers.DynamicQuantizer) or quantizer.format.full
      or quantizer.group_size is not None or quantizer.per_tensor or 'clip' in specification):
    return specification
  runs = [inputs if count == 1 else math.gcd(inputs // count, _STEP) for inputs, count in groups]
  taken = {name: specification.get(name) for name in ('shift', 'scale')}
  taken['hadamard'] = specification['hadamard'].block if 'hadamard' in specification else 1
  rest = {name: entry for name, entry in specification.items() if name not in taken}
  return rest | {'quantizer': DeviceQuantizer(
      **taken, bits=quantizer.format.bits, symmetric=quantizer.format.symmetric, run=math.gcd(*runs))}
