"""Compilation of programs that are run a few times, where the compiler's search for the fastest one does not pay."""

from collections.abc import Callable
import functools
from typing import Any

import jax


def options() -> dict[str, Any]:
  """What such programs are compiled with, in place of XLA's defaults.

  What a model rounds to 16 bits is rounded, also where XLA would keep it in float32 on the way to the next operation:
  which codes an activation gets must not depend on what was fused with what, and kernels round, too.

  On a GPU, XLA compiles dozens of Triton kernels for each shape of a product to find the fastest, which took ten times
  as long as what it saved was worth: 11 s instead of 1 s for GPTQ of one layer, whose run time stayed the same.
  """
  rounding = {'xla_allow_excess_precision': False}
  return rounding | ({'xla_gpu_enable_triton_gemm': False} if jax.default_backend() == 'gpu' else {})


def jit(function: Callable[..., Any], **arguments: Any) -> Callable[..., Any]:
  """`jax.jit` of such a program, `arguments` being those of jax.jit; JAX starts with the first call, not here."""
  compiled = functools.cache(lambda: jax.jit(function, compiler_options=options(), **arguments))
  return functools.wraps(function)(lambda *args, **kwargs: compiled()(*args, **kwargs))
