"""What the kernels share: shared memory in the order that matrix instructions read, and parameters of compilation."""

import inspect

from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from kernels.mosaic import configs

# The default differs between versions of jax; arrays of bytes in registers need this one.
PARAMS = plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup, unsafe_no_auto_barriers=True)


def smem(shape: tuple[int, ...], dtype, part: int | None = None):
  """Shared memory whose last axis is swizzled, so that neither rows nor columns of a tile meet in a bank.

  Args:
    shape, dtype: of the memory.
    part: numbers of the last axis that are read at once, if not all.
  """
  return plgpu.SMEM(shape, dtype, transforms=transforms(part or shape[-1], dtype))


def swizzle(part: int, dtype) -> int:
  """The bytes of a row of a tile, of `part` numbers that are read at once."""
  return plgpu.find_swizzle(part * jnp.dtype(dtype).itemsize * 8)


def transforms(part: int, dtype):
  """The order of numbers in such memory."""
  size = swizzle(part, dtype)
  return plgpu.TilingTransform((8, size // jnp.dtype(dtype).itemsize)), plgpu.SwizzleTransform(size)


# Of a thread that only starts copies.
COPYING = 24


def registers(warpgroups: int) -> int:
  """Registers of a thread that computes, where one warpgroup more copies.

  A block starts with equal shares; what it does not get then it cannot get later, and would wait for without end.
  """
  started = configs.REGISTERS // (warpgroups + 1) // 8 * 8 * (warpgroups + 1)
  return min(256, (started - COPYING) // warpgroups // 8 * 8)


# jax 0.10 wants an index beside the reference, later versions warn of one.
_INDEX = {'idx': None} if inspect.signature(plgpu.load).parameters['idx'].default is inspect.Parameter.empty else {}


def load(ref, layout, *, optimized: bool = True):
  """An array in the given layout of registers; `optimized` fails to compile unless the access is a wide one."""
  return plgpu.load(ref, **_INDEX, layout=layout, optimized=optimized)
