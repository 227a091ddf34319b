"""Which implementation runs a problem, and the log that says so."""

from collections.abc import Callable
import functools
import logging
from typing import Any

import jax

_log = logging.getLogger('kernels')


def device() -> jax.Device:
  """Where programs run whose arrays do not say: the default device of JAX's configuration, or this process' first."""
  default = jax.config.jax_default_device
  if isinstance(default, str):
    return jax.local_devices(backend=default)[0]
  return default or jax.local_devices()[0]


def candidates() -> tuple[str, ...]:
  """The implementations that are tried on `device`, the fastest first; the last takes all."""
  return ('mosaic_gpu', 'xla') if device().platform == 'gpu' else ('xla',)


def call(functions: dict[str, Callable], implementation: str | None, arguments: dict[str, Any], problem: str):
  """Runs the implementation that is asked for, or the first that takes the problem.

  An implementation says `NotImplementedError`, with the reason, of what it does not take. What was passed over, why,
  and what runs instead is logged once for each kind of problem.

  Args:
    functions: implementations by name; all take the same arguments.
    implementation: a name, or None to choose.
    arguments: of the implementations.
    problem: the static part of the problem, in words.
  """
  if implementation is not None:
    return functions[implementation](**arguments)
  *others, last = candidates()
  for name in others:
    try:
      result = functions[name](**arguments)
    except NotImplementedError as error:
      say(logging.WARNING, f'{problem}: not {name}, {error}')
    else:
      say(logging.INFO, f'{problem}: {name}')
      return result
  say(logging.INFO, f'{problem}: {last}')
  return functions[last](**arguments)


@functools.cache
def say(level: int, message: str) -> None:
  """Logs a message the first time it is said."""
  _log.log(level, '%s', message)
