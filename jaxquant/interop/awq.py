"""The AWQ format (version `gemm`): codes and zero points packed along the outputs, in an order of their own.

  qweight  int32 [in, out / 8]; nibble j of word w is output 8 w + ORDER[j]
  qzeros   int32 [groups, out / 8], likewise; zero points as they are
  scales   float16 [groups, out]
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxquant import errors
from jaxquant.interop import gptq
from jaxquant.interop import matrices
from jaxquant.interop import words

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


class AWQ:
  """The format with one scheme for all linears of the blocks, but for those that are left in floats.

  Attributes:
    scheme: of the kernels: 4 bits.
    skipped: parts of names; linears whose name holds one stay floats.
  """

  def __init__(self, scheme: matrices.Scheme, skipped: tuple[str, ...] = ()):
    """Raises `UserError` for a scheme that the format does not have."""
    if scheme.bits != 4:
      raise errors.UserError(f'AWQ packs 4 bits, not {scheme.bits}')
    self.scheme, self.skipped = scheme, skipped

  @classmethod
  def read(cls, config: Mapping[str, Any], where: str) -> 'AWQ':
    """The format of a `quantization_config`; raises `UserError` for a value that we do not know."""
    bits, size = config.get('bits', config.get('w_bit', 4)), config.get('group_size', config.get('q_group_size', 128))
    version, skipped = str(config.get('version', 'gemm')).lower(), config.get('modules_to_not_convert') or ()
    if version != 'gemm' or bits != 4 or type(size) is not int or size == 0 or size < -1:
      raise errors.UserError(
          f'{where}: version {version!r} with {bits!r} bits in groups of {size!r}; there is gemm with 4')
    if not isinstance(skipped, (list, tuple)) or not all(isinstance(name, str) for name in skipped):
      raise errors.UserError(f'{where}: modules_to_not_convert is {skipped!r}')
    # Zero points stand in the file whether they are used or not.
    return cls(matrices.Scheme(4, False, None if size == -1 else size), tuple(skipped))

  def config(self) -> dict[str, Any]:
    """The `quantization_config`."""
    return {'quant_method': 'awq', 'bits': 4, 'group_size': self.scheme.group_size or -1, 'zero_point': True,
            'version': 'gemm', 'modules_to_not_convert': list(self.skipped) or None}

  def scheme_of(self, module: str) -> matrices.Scheme | None:
    """The scheme of a linear; None for one in floats."""
    return None if any(part in module for part in self.skipped) else self.scheme

  def shapes(self, module: str, inputs: int, outputs: int) -> dict[str, tuple[np.dtype | None, tuple[int, ...]]]:
    """Dtype (None for any float) and shape of every tensor of a linear, by the end of its name."""
    del module
    groups = self.scheme.groups(inputs)
    return {'qweight': (np.dtype(np.int32), (inputs, words.count(outputs, 4))),
            'qzeros': (np.dtype(np.int32), (groups, words.count(outputs, 4))), 'scales': (None, (groups, outputs))}

  def encode(self, matrix: matrices.Matrix, path: str) -> dict[str, np.ndarray]:
    """The tensors of a kernel; raises `UserError` if the outputs do not fill words, or a scale leaves float16."""
    if matrix.codes.shape[1] % len(ORDER):
      raise errors.UserError(
          f'{path}: AWQ packs outputs by {len(ORDER)}, which does not divide {matrix.codes.shape[1]}')
    return {'qweight': words.pack(_ordered(matrix.codes, ORDER), 4),
            'qzeros': words.pack(_ordered(matrix.zero_point, ORDER), 4), 'scales': gptq.float16(matrix.scale, path)}

  def decode(self, tensors: Mapping[str, np.ndarray], module: str, inputs: int, where: str):
    """(the kernel, None: inputs are in their order)."""
    del module, inputs, where
    scales = np.asarray(tensors['scales'], np.float32)
    back = np.argsort(ORDER)
    codes, zeros = (_ordered(words.unpack(tensors[name], 4, scales.shape[1]), back) for name in ('qweight', 'qzeros'))
    return matrices.Matrix(codes, scales, zeros.astype(np.int16), self.scheme), None


def _ordered(codes: np.ndarray, order) -> np.ndarray:
  """Columns reordered within each run of eight."""
  return codes.reshape(codes.shape[0], -1, len(ORDER))[..., np.asarray(order)].reshape(codes.shape)
