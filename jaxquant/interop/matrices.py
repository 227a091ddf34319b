"""A quantized kernel as all formats of others mean it, between their tensors and our QTensor."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.numerics import formats
from jaxquant.numerics import packing
from jaxquant.numerics import qtensor


@dataclasses.dataclass(frozen=True)
class Scheme:
  """How the codes of a kernel lie over its values.

  Attributes:
    bits: of a code, 2 to 8.
    symmetric: whether the zero point is 2^(bits-1) everywhere.
    group_size: inputs that share a scale; None: all of them.
    per_tensor: whether all outputs share it too, which is how files hold it; `Matrix` has it for each output.
  """

  bits: int
  symmetric: bool
  group_size: int | None
  per_tensor: bool = False

  def groups(self, inputs: int) -> int:
    """Groups of a kernel of so many inputs."""
    return inputs // self.group_size if self.group_size else 1

  def __str__(self):
    kind = 'symmetric' if self.symmetric else 'asymmetric'
    each = 'per tensor' if self.per_tensor else 'per channel'
    return f'{kind} {self.bits} bits ' + (f'in groups of {self.group_size}' if self.group_size else each)


@dataclasses.dataclass(frozen=True)
class Matrix:
  """value = (code - zero_point) * scale.

  Attributes:
    codes: uint8 [in, out], 0 to 2^bits - 1.
    scale: float32 [groups, out].
    zero_point: int16 [groups, out], 0 to 2^bits - 1.
    scheme: what they are.
  """

  codes: np.ndarray
  scale: np.ndarray
  zero_point: np.ndarray
  scheme: Scheme

  def values(self) -> np.ndarray:
    """The kernel, float32 [in, out]."""
    size = self.codes.shape[0] // self.scale.shape[0]
    spread = lambda a: np.repeat(a, size, axis=0)
    return (self.codes.astype(np.float32) - spread(self.zero_point)) * spread(self.scale)


def scheme(kernel: qtensor.QTensor, path: str) -> Scheme:
  """The scheme of a kernel of ours; raises `UserError` naming `path` where no format of others has such codes."""
  if not isinstance(kernel.format, formats.IntFormat):
    raise errors.UserError(f'{path}: {kernel.format.name} has special codes, which no format of others knows')
  if not kernel.format.with_zero:
    raise errors.UserError(f'{path}: {kernel.format.name} has real zero points, which no format of others knows')
  if kernel.axis != -2:
    raise errors.UserError(
        f'{path}: its scales belong to input channels; other formats have them for outputs and groups')
  return Scheme(kernel.format.bits, kernel.format.symmetric, kernel.group_size if kernel.groups > 1 else None)


def from_qtensor(kernel: qtensor.QTensor, path: str) -> Matrix:
  """A kernel of ours, [in, out]; raises `UserError` as `scheme` does."""
  made = scheme(kernel, path)
  middle = 2 ** (made.bits - 1)
  codes = np.asarray(kernel.unpacked()).astype(np.int16) + (middle if made.symmetric else 0)
  # One scale for the whole axis may stand for every output.
  wide = lambda a: np.broadcast_to(np.asarray(a), (kernel.groups, kernel.shape[-1]))
  zero_point = np.int16(middle) if kernel.zero_point is None else np.asarray(kernel.zero_point).astype(np.int16)
  return Matrix(codes.astype(np.uint8), wide(kernel.scale).astype(np.float32), np.array(wide(zero_point)), made)


def to_qtensor(matrix: Matrix) -> qtensor.QTensor:
  """The kernel as one of ours, in NumPy arrays: symmetric codes are those of the full range."""
  bits, symmetric = matrix.scheme.bits, matrix.scheme.symmetric
  fmt = formats.IntFormat(bits, symmetric, full=symmetric)
  codes = (matrix.codes.astype(np.int16) - 2 ** (bits - 1)).astype(np.int8) if symmetric else matrix.codes
  packed = np.asarray(packing.pack(jnp.asarray(codes), fmt, -2))
  zero_point = None if symmetric else matrix.zero_point.astype(np.uint8)
  return qtensor.QTensor(packed, matrix.scale, zero_point, fmt, -2, codes.shape[0])
