"""What every implementation in Mosaic needs around its kernel: the device, maps over leading axes, no derivative."""

import jax
import jax.numpy as jnp


def check_device() -> None:
  """Raises `NotImplementedError` unless this process' default device is a Hopper GPU."""
  device = jax.local_devices()[0]
  if device.platform != 'gpu' or getattr(device, 'compute_capability', None) != '9.0':
    raise NotImplementedError(f'it needs an NVIDIA GPU of compute capability 9.0, and this is {device.device_kind}')


def guarded(run, operands: dict, of_tokens: tuple[str, ...]):
  """`run(operands)`, which maps over leading axes and refuses to differentiate.

  Args:
    run: takes the operands; those of tokens may have leading axes.
    operands: arrays or None by name; the first of `of_tokens` has the most axes.
    of_tokens: names of the operands that belong to tokens.
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
  first, *_ = of_tokens
  if batched[first] and not any(mapped for name, mapped in batched.items() if name not in of_tokens):
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
  fixed = {name: value for name, value in operands.items() if not batched[name]}
  mapped = {name: value for name, value in operands.items() if batched[name]}
  result = jax.lax.map(lambda each: run({**fixed, **each}), mapped)
  return result, jax.tree.map(lambda _: True, result)


def next_multiple(size: int, of: int) -> int:
  """The least multiple of `of` that is at least `size`."""
  return -(-size // of) * of


def fit(vector, size: int):
  """A vector with zeros behind it up to `size`."""
  return jnp.pad(vector, (0, size - len(vector)))
