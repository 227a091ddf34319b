"""Lets what emits instructions of single threads work with arrays of 128 threads' numbers instead of values of MLIR."""

import contextlib
import types
from unittest import mock

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith
import numpy as np

from kernels.mosaic import threads


def _bitcast(value, kind):
  """Numbers of [threads] or, of a vector, [threads, entries] as others with as many bits."""
  value = np.ascontiguousarray(value)
  return value.view(np.float32 if kind == ir.F32Type.get() else np.uint32).reshape(threads.WARPGROUP)


def _upper_halves(low, high, places):
  assert places == 0x7632
  return (np.asarray(low, np.uint32) >> 16) | (np.asarray(high, np.uint32) & np.uint32(0xFFFF0000))


def _transposed(words):
  """movmatrix, by the table of the PTX manual: [threads] of 32 bits, two numbers of 16 bits of a matrix of a warp."""
  matrices = np.ascontiguousarray(words, np.uint32).view(np.uint16).reshape(-1, 8, 8)
  return np.ascontiguousarray(matrices.transpose(0, 2, 1)).view(np.uint32).reshape(threads.WARPGROUP)


_ARITH = types.SimpleNamespace(
    andi=np.bitwise_and, ori=np.bitwise_or, xori=np.bitwise_xor, shrui=np.right_shift, shli=np.left_shift, addi=np.add,
    muli=np.multiply, divui=np.floor_divide, remui=np.remainder, select=np.where, addf=np.add, subf=np.subtract,
    mulf=np.multiply, extui=lambda kind, word: word.astype(np.uint64), CmpIPredicate=arith.CmpIPredicate,
    cmpi=lambda predicate, a, b: {arith.CmpIPredicate.eq: np.equal, arith.CmpIPredicate.ne: np.not_equal,
                                  arith.CmpIPredicate.ult: np.less}[predicate](a, b))
UTILS = types.SimpleNamespace(
    c=lambda value, kind: np.uint64(value), prmt=_upper_halves, bitcast=_bitcast, warpgroup_barrier=lambda: None,
    shfl_bfly=lambda word, distance: np.asarray(word)[np.arange(threads.WARPGROUP) ^ distance])
_MATH = types.SimpleNamespace(ctpop=np.bitwise_count, fma=lambda a, b, c: a * b + c)


@contextlib.contextmanager
def emulated(module, **names):
  """Within it, instructions that `module` emits are done to arrays; `names` of it are others, too."""
  known = {'arith': _ARITH, 'utils': UTILS, 'math': _MATH}
  with ir.Context(), ir.Location.unknown(), mock.patch.multiple(
      threads, constant=lambda value: np.uint32(value % 2**32), transposed=_transposed,
      number=lambda: np.arange(threads.WARPGROUP, dtype=np.uint32)):
    with mock.patch.multiple(module, **({name: known[name] for name in known if hasattr(module, name)} | names)):
      yield
