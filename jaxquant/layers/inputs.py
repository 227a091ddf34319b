"""Input specifications: what happens to an activation before the product that reads it.

A specification is a dict in the parameter tree with any of these entries, applied in this order:

  gather     int32 [channels]       channel i of the result is channel gather[i] of the activation
  shift      float32 [channels]     subtracted
  scale      float32 [channels]     divided by
  hadamard   numerics.hadamard      blocks multiplied by the normalized Walsh-Hadamard matrix of their order
  clip       float32 [2]            lower and upper end
  quantizer  an input quantizer node (numerics.quantizers)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxquant import errors
from jaxquant.layers import norms
from jaxquant.numerics import codes as codes_lib
from kernels import before

ENTRIES = ('gather', 'shift', 'scale', 'hadamard', 'clip', 'quantizer')


class UnknownEntry(ValueError):
  """An input specification has an entry that there is not, which shows at least that somebody reads it."""


class Activation(NamedTuple):
  """An activation ready for a product: quantized values for float kernels and, if quantized, codes for integer ones.

  Under jit, whichever of the two no product reads is never computed.
  """

  values: Any
  codes: codes_lib.Codes | None


class Pending(NamedTuple):
  """An activation not computed yet: `function(*arrays)`, an elementwise nonlinearity.

  Whoever quantizes the activation recomputes it in the backward pass from `arrays`, which are read there anyway,
  instead of storing it beside its quantized copy.

  Attributes:
    function, arrays: see above.
    gate: the name of a nonlinearity where the function is that of half of a single array times the other, which take
      turns (kernels.gates), for a reader that can do that on the way to its codes.
  """

  function: Callable[..., Any]
  arrays: tuple[Any, ...]
  gate: str | None = None

  def compute(self):
    """The activation [..., features]."""
    return self.function(*self.arrays)


class Made(NamedTuple):
  """An activation that a kernel will make, or its codes where the range of whoever reads it is static.

  It is made once, by its only reader.

  Attributes:
    make: (a `kernels.StaticRange` or None, bits) -> the activation [..., features], or its codes, int8.
    dtype: of the activation.
  """

  make: Callable[[Any, int], Any]
  dtype: Any

  def compute(self):
    """The activation [..., features]."""
    return self.make(None, 8)


def prepare(specification: dict | None, x) -> Activation:
  """Applies an input specification.

  Args:
    specification: the dict above, or None.
    x: [..., features]; a `Pending`, a `Made` or a `norms.Normed` that computes it; or an `Activation` that another
      specification (that of a shared site) made already.

  Returns:
    An `Activation` whose values have the dtype of the activation.

  Raises:
    UnknownEntry: an entry that there is not.
    ValueError: codes quantized a second time.
  """
  if isinstance(x, Activation):
    if not specification:
      return x
    if x.codes is not None:
      raise ValueError(f'an activation quantized at its site meets a second input specification {list(specification)}')
    x = x.values
  if not specification:
    return Activation(x.compute() if isinstance(x, (Pending, Made, norms.Normed)) else x, None)
  if unknown := set(specification) - set(ENTRIES):
    raise UnknownEntry(f'unknown entries {sorted(unknown)} in an input specification; there are {", ".join(ENTRIES)}')
  if isinstance(x, Pending):
    if set(specification) == {'quantizer'} and x.gate in getattr(specification['quantizer'], 'gates', ()):
      return _quantized(specification['quantizer'], x)
    return jax.checkpoint(lambda *arrays: _apply(specification, x.function(*arrays)))(*x.arrays)
  if isinstance(x, Made):
    if set(specification) == {'quantizer'} and getattr(specification['quantizer'], 'takes_made', False):
      return _of_codes(specification['quantizer'].made(x), x.dtype)
    x = x.compute()
  if isinstance(x, norms.Normed):
    if takes_norms(specification):
      return _quantized(specification['quantizer'], x)
    x = x.compute()
  return _apply(specification, x)


def prepare_total(specification: dict, x: norms.Normed) -> tuple[Activation, Any]:
  """The normalized activation, prepared by what `takes_norms`, and the array, perhaps a sum, that the norm is of."""
  codes, total = specification['quantizer'].codes_and_total(x)
  return _of_codes(codes, total.dtype), total


def takes_norms(specification: dict | None) -> bool:
  """Whether what quantizes the activation computes a norm in front of it too, given a `norms.Normed`."""
  return set(specification or ()) == {'quantizer'} and getattr(specification['quantizer'], 'takes_norms', False)


def _apply(specification: dict, x) -> Activation:
  dtype = x.dtype
  if 'gather' in specification:
    x = jnp.take(x, specification['gather'], axis=-1)
  if 'shift' in specification:
    x = (x - specification['shift']).astype(dtype)
  if 'scale' in specification:
    x = (x / specification['scale']).astype(dtype)
  if 'hadamard' in specification:
    x = _transformed(x, specification['hadamard'].block)
  if 'clip' in specification:
    x = jnp.clip(x.astype(jnp.float32), *specification['clip']).astype(dtype)
  activation = _quantized(specification['quantizer'], x) if 'quantizer' in specification else Activation(x, None)
  return activation._replace(values=activation.values.astype(dtype))


def _transformed(x, block: int):
  """float32 [..., channels], not rounded in front of a quantizer, as `kernels.quantize_activations` does not either."""
  if block < 1 or block & (block - 1) or x.shape[-1] % block:
    raise errors.UserError(f'a Hadamard transform takes blocks of a power of two that divides {x.shape[-1]} channels, '
                           f'not of {block}')
  return before.rotated(x, block)


def _of_codes(codes: codes_lib.Codes, dtype) -> Activation:
  return Activation(codes_lib.values(codes).astype(dtype), codes)


def _quantized(quantizer, x) -> Activation:
  return Activation(quantizer(x), quantizer.codes(x))
