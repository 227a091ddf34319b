"""Input quantizers of a tree that is laid out for a GPU: one kernel per activation, with the sums that products need.

Offsets of weights meet the sums of the activation's codes over the weights' groups, which a quantizer has at hand when
it rounds. A norm that stands before it, a gate, a shift, a scale and a transform of channels are taken into the kernel
too. A range that is static is known before the activation is, so that the kernel that makes the activation may make its
codes (`inputs.Made`); its offset goes into the biases of the linears that read it. Ranges of groups of features stay
with XLA.
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
from kernels import gates as gates_lib

# Products sum the codes of so many inputs at a time, or of a part of them that divides a group.
_STEP = 128
_STATIC = (quantizers.ClipQuantizer, quantizers.PactQuantizer, quantizers.StepQuantizer)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=['shift', 'scale', 'static'],
    meta_fields=['hadamard', 'bits', 'symmetric', 'run'])
@dataclasses.dataclass(frozen=True)
class DeviceQuantizer:
  """Per-token ranges, as `DynamicQuantizer` takes them, or a static one: by a GPU's kernel.

  A code on an edge may be its neighbor. Values of a static range lack its offset, which is in the biases of the linears
  that read them; what else does, such as a tap, finds them without.

  Attributes:
    shift, scale: float32 [features], subtracted and divided by before, or None.
    static: a `kernels.StaticRange`, or None for ranges of tokens.
    hadamard: features that are transformed together behind these, 1 for none.
    bits: bits of a code.
    symmetric: whether there is no offset; without meaning for a static range.
    run: features whose codes are summed.
  """

  shift: Any
  scale: Any
  static: kernels.StaticRange | None
  hadamard: int
  bits: int
  symmetric: bool
  run: int

  takes_norms: ClassVar[bool] = True
  gates: ClassVar[frozenset[str]] = frozenset(gates_lib.GATES)

  @property
  def has_offset(self) -> bool:
    """Whether its codes have one."""
    return self.static is None and not self.symmetric

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
        x, bits=self.bits, symmetric=self.symmetric, before=before, static=self.static, group_size=self.run,
        addend=addend, implementation=None)
    codes = codes_lib.Codes(got.codes, got.scale, got.offset if self.static is None else None, self.bits, got.row_sums)
    return codes, x if addend is None else got.total

  @property
  def takes_made(self) -> bool:
    """Whether the kernel that makes the activation can make its codes."""
    return self.static is not None and self.shift is None and self.scale is None and self.hadamard == 1

  def made(self, x) -> codes_lib.Codes:
    """Codes of an `inputs.Made`, if it `takes_made`; weights with offsets have the product sum them."""
    return codes_lib.Codes(x.make(self.static, self.bits), self.static.scale, None, self.bits)

  def __call__(self, x):
    codes, total = self.codes_and_total(x)
    return codes_lib.values(codes).astype(total.dtype)


def static_range(specification: dict[str, Any]) -> kernels.StaticRange | None:
  """The static range of the whole activation, which nothing clips before; None if there is none."""
  quantizer = specification['quantizer']
  if not isinstance(quantizer, _STATIC) or 'clip' in specification:
    return None
  codes = quantizer.codes(jnp.zeros(1))  # the range is the same for any activation
  return None if codes.scale.ndim else kernels.StaticRange(codes.scale, codes.offset)


def converted(
    specification: dict[str, Any], groups: list[tuple[int, int]],
    static: kernels.StaticRange | None = None) -> dict[str, Any]:
  """The input specification with a quantizer for a GPU, or as it is if there is none for it.

  Args:
    specification: see `layers.inputs`, with a quantizer.
    groups: (inputs, groups of inputs) of each kernel that reads the activation and is laid out for a GPU.
    static: its range, if that is static and the offset in the biases of all that read it.
  """
  quantizer = specification['quantizer']
  dynamic = isinstance(quantizer, quantizers.DynamicQuantizer) and not (
      quantizer.format.full or quantizer.group_size is not None or quantizer.per_tensor)
  if not groups or 'clip' in specification or not (dynamic or static):
    return specification
  runs = [inputs if count == 1 else math.gcd(inputs // count, _STEP) for inputs, count in groups]
  taken = {name: specification.get(name) for name in ('shift', 'scale')}
  taken['hadamard'] = specification['hadamard'].block if 'hadamard' in specification else 1
  rest = {name: entry for name, entry in specification.items() if name not in taken}
  bits, symmetric = (quantizer.format.bits, quantizer.format.symmetric) if dynamic else (quantizer.bits, True)
  return rest | {'quantizer': DeviceQuantizer(
      **taken, static=static, bits=bits, symmetric=symmetric, run=math.gcd(*runs))}
