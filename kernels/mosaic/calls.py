"""What every implementation in Mosaic needs around its kernel: the device, maps over leading axes, no derivative."""

import importlib
import math

import jax
import jax.numpy as jnp

from kernels import dispatch
from kernels import layouts

# The kernels rely on the Mosaic of this version; what later ones take away shows when their modules are imported.
_OLDEST_JAX = (0, 10, 2)
_KERNELS = ('decode', 'decode_attention', 'prefill', 'token_arithmetic', 'token_transform')


def check_device() -> None:
  """Raises `NotImplementedError` unless `dispatch.device` is a Hopper GPU, and its JAX has what it takes."""
  found = dispatch.device()
  if found.platform != 'gpu' or getattr(found, 'compute_capability', None) != '9.0':
    raise NotImplementedError(f'it needs an NVIDIA GPU of compute capability 9.0, and this is {found.device_kind}')
  check_jax()


def check_jax() -> None:
  """Raises `NotImplementedError` unless this version of JAX has what the kernels are written in."""
  if jax.__version_info__ < _OLDEST_JAX:
    raise NotImplementedError(f'it needs jax {".".join(map(str, _OLDEST_JAX))} or later, and this is {jax.__version__}')
  try:
    for name in _KERNELS:
      importlib.import_module(f'kernels.mosaic.{name}')
  except (ImportError, AttributeError, KeyError, TypeError) as error:
    raise NotImplementedError(f'jax {jax.__version__} lacks what it is written in: {error}') from error


def group_of(inputs: int, groups: int) -> int | None:
  """The inputs whose sums are scaled at a time, of `inputs` in `groups`; None where there is one scale an output.

  Raises:
    NotImplementedError: for groups of another size than kernels take.
  """
  if groups == 1:
    return None
  if inputs // groups % 32 or inputs % layouts.PADDING:
    raise NotImplementedError(f'it takes groups of a multiple of 32 inputs, {layouts.PADDING} of which divide all of '
                              f'them, not groups of {inputs // groups} of {inputs}')
  return math.gcd(inputs // groups, 128)


def whole_rows(tokens: int) -> int:
  """Rows of activations that a copy reads: of more than 8, a multiple of 8."""
  return tokens if tokens < 8 else next_multiple(tokens, 8)


def guarded(run, operands: dict, of_tokens: tuple[str, ...]):
  """`run(operands)`, which maps over leading axes and refuses to differentiate.

  Args:
    run: takes the operands; those of tokens may have leading axes.
    operands: arrays, tuples of them, or None, by name; those of `of_tokens` are no tuples, and its first has the most
      axes.
    of_tokens: names of the operands that belong to tokens; where there are none, every map is a loop.
  """
  mapped = jax.custom_batching.custom_vmap(run)
  mapped.def_vmap(lambda size, batched, operands: _mapped(mapped, of_tokens, size, batched[0], operands))
  differentiable = jax.custom_jvp(mapped)
  differentiable.defjvp(_no_derivative)
  return differentiable(operands)


def _no_derivative(primals, tangents):
  raise NotImplementedError('it has no derivative; differentiate the product of the dequantized values instead')


def _mapped(run, of_tokens, size: int, batched: dict, operands: dict):
  """More tokens for the same weights where only activations are mapped, else one product after another."""
  first = of_tokens[0] if of_tokens else None
  if first and batched[first] and not any(mapped for name, mapped in batched.items() if name not in of_tokens):
    rank = operands[first].ndim

    def with_axis(name):
      value = operands[name]
      if value is None or name not in of_tokens or (value.ndim == 0 and not batched[name]):
        return value
      if not batched[name]:
        return jnp.broadcast_to(value, (size, *value.shape))
      return value.reshape(size, *(1,) * (rank - value.ndim), *value.shape[1:])

    result = run({name: with_axis(name) for name in operands})
    return result, jax.tree.map(lambda _: True, result)
  leaves, structure = jax.tree.flatten(operands)
  flags = jax.tree.leaves(batched)

  def one(mapped):
    mapped = iter(mapped)
    return run(jax.tree.unflatten(structure, [next(mapped) if flag else leaf for leaf, flag in zip(leaves, flags)]))

  result = jax.lax.map(one, [leaf for leaf, flag in zip(leaves, flags) if flag])
  return result, jax.tree.map(lambda _: True, result)


def next_multiple(size: int, of: int) -> int:
  """The least multiple of `of` that is at least `size`."""
  return -(-size // of) * of


def fit(vector, size: int):
  """A vector with zeros behind it up to `size`."""
  return jnp.pad(vector, (0, size - len(vector)))
