"""The GPTQ format (AutoGPTQ, GPTQModel): codes packed along the inputs, zero points along the outputs, 16-bit scales.

  qweight  int32 [in * bits / 32, out]
  qzeros   int32 [groups, out * bits / 32]; version 1 stores zero points less one, `gptq_v2` as they are
  scales   float16 [groups, out]
  g_idx    int32 [in], the group of each input, in any order where the inputs were sorted (`desc_act`)
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxquant import errors
from jaxquant.interop import matrices
from jaxquant.interop import words

BITS = (2, 4, 8)
VERSIONS = ('gptq', 'gptq_v2')


class GPTQ:
  """The format with one scheme for all linears of the blocks.

  Attributes:
    scheme: of the kernels.
    version: one of `VERSIONS`.
    in_any_order: whether the inputs of a group may be any.
  """

  def __init__(self, scheme: matrices.Scheme, version: str = 'gptq', in_any_order: bool = False):
    """Raises `UserError` for a scheme that the format does not have."""
    if scheme.bits not in BITS:
      raise errors.UserError(f'GPTQ packs {", ".join(map(str, BITS))} bits, not {scheme.bits}')
    self.scheme, self.version, self.in_any_order = scheme, version, in_any_order

  @classmethod
  def read(cls, config: Mapping[str, Any], where: str) -> 'GPTQ':
    """The format of a `quantization_config`; raises `UserError` for a value that we do not know."""
    bits, size, version = config.get('bits'), config.get('group_size', 128), config.get('checkpoint_format', 'gptq')
    if version not in VERSIONS:
      raise errors.UserError(f'{where}: checkpoint_format is {version!r}; there are {", ".join(VERSIONS)}')
    if type(bits) is not int or bits not in BITS or type(size) is not int or size == 0 or size < -1:
      raise errors.UserError(f'{where}: {bits!r} bits in groups of {size!r}; there are {", ".join(map(str, BITS))} '
                             'bits, and -1 for no groups')
    if config.get('lm_head') or config.get('dynamic'):
      raise errors.UserError(f'{where}: a quantized head, or formats that differ between layers, are not supported')
    scheme = matrices.Scheme(bits, bool(config.get('sym', True)), None if size == -1 else size)
    return cls(scheme, version, bool(config.get('desc_act')))

  def config(self) -> dict[str, Any]:
    """The `quantization_config`."""
    return {'quant_method': 'gptq', 'bits': self.scheme.bits, 'group_size': self.scheme.group_size or -1,
            'desc_act': False, 'sym': self.scheme.symmetric, 'checkpoint_format': self.version, 'lm_head': False,
            'pack_dtype': 'int32'}

  def scheme_of(self, module: str) -> matrices.Scheme | None:
    """The scheme of a linear."""
    del module
    return self.scheme

  def shapes(self, module: str, inputs: int, outputs: int) -> dict[str, tuple[np.dtype | None, tuple[int, ...]]]:
    """Dtype (None for any float) and shape of every tensor of a linear, by the end of its name."""
    del module
    groups = self.scheme.groups(inputs)
    return {'qweight': (np.dtype(np.int32), (words.count(inputs, self.scheme.bits), outputs)),
            'qzeros': (np.dtype(np.int32), (groups, words.count(outputs, self.scheme.bits))),
            'scales': (None, (groups, outputs)), 'g_idx': (np.dtype(np.int32), (inputs,))}

  def encode(self, matrix: matrices.Matrix, path: str) -> dict[str, np.ndarray]:
    """The tensors of a kernel.

    Raises:
      UserError: a scale leaves float16; or, in version 1, a zero point of zero, which it cannot hold, belongs to codes
        that cannot all be one larger either.
    """
    bits, codes, zeros = self.scheme.bits, matrix.codes, matrix.zero_point
    inputs = codes.shape[0]
    size = inputs // matrix.scale.shape[0]
    if self.version == 'gptq':
      codes, zeros = _raised(codes, zeros, size, bits, path)
      zeros = zeros - 1
    return {'qweight': words.pack(codes.T, bits).T, 'qzeros': words.pack(zeros, bits),
            'scales': float16(matrix.scale, path), 'g_idx': (np.arange(inputs) // size).astype(np.int32)}

  def decode(self, tensors: Mapping[str, np.ndarray], module: str, inputs: int, where: str):
    """(the kernel, which of the inputs each of its rows reads).

    Raises:
      UserError: zero points contradict `sym`, as in files that say the wrong version, or groups are of unequal size.
        Asymmetric codes of the wrong version cannot be told from others: all their zero points are then off by one.
    """
    del module
    bits, scales = self.scheme.bits, np.asarray(tensors['scales'], np.float32)
    groups, outputs = scales.shape
    # Of version 1, GPTQModel adds one to all codes of a word by one addition, in which a code of all ones carries.
    packed = np.ascontiguousarray(tensors['qzeros']).view(np.uint32)
    packed = packed + np.uint32((2**32 - 1) // (2**bits - 1)) if self.version == 'gptq' else packed
    zeros = words.unpack(packed, bits, outputs).astype(np.int16)
    if self.scheme.symmetric and (zeros != 2 ** (bits - 1)).any():
      raise errors.UserError(
          f'{where}: its zero points are not those of symmetric codes in a file of version {self.version!r}; is '
          'checkpoint_format, or sym, wrong?')
    codes = words.unpack(np.asarray(tensors['qweight']).T, bits, inputs).T
    index, size = np.asarray(tensors['g_idx']), inputs // groups
    ordered = np.sort(index) if self.in_any_order else index
    if (ordered != np.arange(inputs) // size).any():
      raise errors.UserError(f'{where}: g_idx does not give {size} inputs to each of {groups} groups'
                             + ('' if self.in_any_order else ' in their order, as desc_act says'))
    gather = np.argsort(index, kind='stable').astype(np.int32)
    return matrices.Matrix(codes[gather], scales, zeros, self.scheme), gather


def float16(scale: np.ndarray, path: str) -> np.ndarray:
  """Scales in 16 bits; raises `UserError` naming `path` if one is too large or vanishes."""
  with np.errstate(over='ignore'):
    made = scale.astype(np.float16)
  if not np.isfinite(made).all() or ((made == 0) & (scale != 0)).any():
    least, most = np.min(np.abs(scale)), np.max(np.abs(scale))
    raise errors.UserError(f'{path}: a scale of {most:.3g} or {least:.3g} leaves float16')
  return made


def _raised(codes, zeros, size, bits, path):
  """Codes and zero points of groups whose zero point is zero, one larger each: the same values."""
  lowest = zeros == 0
  if not lowest.any():
    return codes, zeros
  add = np.repeat(lowest, size, axis=0)
  raised = codes + add.astype(np.uint8)
  if (raised[add] > 2**bits - 1).any():
    raise errors.UserError(f'{path}: version 1 of GPTQ cannot hold a zero point of 0 beside a code of {2**bits - 1}; '
                           'gptq_v2 can')
  return raised, zeros + lowest
