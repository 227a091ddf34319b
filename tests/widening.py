"""Programs in float64: what a function computes in float32, with twice the digits.

Layers take statistics, angles and scores in float32 by name, so that a network of float64 parameters would still be one
of float32. Its program is evaluated operation by operation instead, with every float32 in it widened.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np

# Operations that run the program among their parameters, once and on their own arguments.
_CALLS = {'jit': 'jaxpr', 'checkpoint': 'jaxpr', 'custom_jvp_call': 'call_jaxpr'}


def in_float64(function: Callable[..., jax.Array], *arguments: Any) -> np.ndarray:
  """Returns function(*arguments), computed in float64 from the first operation to the last.

  Args:
    function: traced for float32 wherever `arguments` are float64.
    *arguments: trees of arrays.
  """
  narrow = lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32 if x.dtype == np.float64 else x.dtype)
  program = jax.make_jaxpr(function)(*jax.tree.map(narrow, arguments))
  with jax.enable_x64(True):
    return np.asarray(*_evaluated(program.jaxpr, program.consts, jax.tree.leaves(arguments)))


def _evaluated(program, constants, arguments) -> list[jax.Array]:
  values = dict(zip((*program.constvars, *program.invars), map(_widened, (*constants, *arguments)), strict=True))
  read = lambda variable: _widened(variable.val) if isinstance(variable, core.Literal) else values[variable]
  for operation in program.eqns:
    inputs = [read(variable) for variable in operation.invars]
    name, parameters = operation.primitive.name, operation.params
    if name in _CALLS:
      inner = parameters[_CALLS[name]]  # closed over its constants, or without any
      outputs = _evaluated(getattr(inner, 'jaxpr', inner), getattr(inner, 'consts', ()), inputs)
    else:
      outputs = operation.primitive.bind(*inputs, **{key: _wide(value) for key, value in parameters.items()})
      outputs = outputs if operation.primitive.multiple_results else [outputs]
    if any(output.dtype == jnp.float32 for output in outputs):
      raise ValueError(f'{name} puts out float32, however its inputs are widened')
    values.update(zip(operation.outvars, outputs, strict=True))
  return [read(variable) for variable in program.outvars]


def _widened(x):
  return jnp.asarray(x, _wide(jnp.result_type(x)))


def _wide(value: Any) -> Any:
  """The dtype float64 for float32; any other value as it is."""
  return np.dtype(np.float64) if isinstance(value, np.dtype) and value == np.float32 else value
