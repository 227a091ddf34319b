"""The one evaluator of linear layers.

A linear layer is a dict in the parameter tree: `kernel` [in, out] (an array or a QTensor), optionally `bias` [out],
`input` (see layers.inputs) and `kernel_quantizer` (rounds a float kernel in training). Which arithmetic runs follows
from what the dict holds:

  kernel    activation   product
  float     any          the activation's quantized values with the kernel, in the activation's dtype
  QTensor   float        the activation with the dequantized kernel, in the activation's dtype
  QTensor   quantized    codes with codes, exact (kernels.quantized_matmul), float32 epilogue; or, where `DEQUANTIZED`
                         is asked for, the quantized values with the dequantized kernel, in the activation's dtype

A kernel laid out for a GPU (layers.device_kernels) takes the place of a QTensor; nothing differentiates through it.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

import kernels
from jaxquant import errors
from jaxquant.layers import device_kernels
from jaxquant.layers import inputs
from jaxquant.layers import tap
from jaxquant.numerics import codes as codes_lib
from jaxquant.numerics import qtensor
from jaxquant.numerics import quantize
from kernels import behind as behind_lib

# Not exact, and much faster where scales are many: for calibration, whose inputs need not be right to the last bit.
DEQUANTIZED = 'dequantized'
# Tokens up to which a product computes its gate: of more, some are tiles of many tokens, which leave it to XLA.
_FEW = 48
_IMPLEMENTATIONS = (*kernels.IMPLEMENTATIONS, *kernels.DEVICE_IMPLEMENTATIONS, 'auto', DEQUANTIZED)


def linear(params: dict, x, *, implementation: str = 'simulated', transpose: bool = False):
  """Evaluates a linear layer from its subtree.

  Args:
    params: the dict above.
    x: activation [..., in], or an `inputs.Activation` prepared at the site that several linears share.
    implementation: how codes meet codes, and a kernel that is laid out a plain activation. `simulated` and `xla` run
      everywhere and give the same bits; `mosaic_gpu` gives the same integers before they are scaled; `auto` takes what
      is fastest for the problem on this device; `DEQUANTIZED` does without integers.
    transpose: contract with the kernel's last axis instead (a tied head reads the embedding's [vocabulary, in]).

  Returns:
    [..., out] in the dtype of `x`.

  Raises:
    UserError: `mosaic_gpu` is asked for, and does not take this product, or not on this device.
    ValueError: an unknown implementation, or a kernel laid out for another number of inputs.
  """
  if implementation not in _IMPLEMENTATIONS:
    raise ValueError(f'unknown implementation {implementation!r}; there are {", ".join(_IMPLEMENTATIONS)}')
  activation = inputs.prepare(params.get('input'), x)
  return _product(activation, effective_kernel(params), params.get('bias'), implementation, transpose)


def gated(params: dict, x, gate: str, implementation: str = 'auto') -> inputs.Made | inputs.Pending:
  """What the joined linear of a gate and of what it multiplies (layers.device_kernels) gives to a reader.

  Of few tokens, the product computes the gate, and makes codes for a reader whose range is static; of many, the reader
  computes it.

  Args:
    params: `kernel` and perhaps `bias`.
    x: an `inputs.Activation`.
    gate: one of `kernels.gates.GATES`.
    implementation: one of `device_kernels.OF_GPUS`.
  """
  run = lambda behind: _device_product(
      x, params['kernel'], params.get('bias'), _chosen(implementation), behind)
  dtype = x.values.dtype
  if math.prod(x.values.shape[:-1]) <= _FEW:
    return inputs.Made(lambda static, bits: run(kernels.Behind(gate, static, bits)), dtype)
  compute = lambda both: behind_lib.apply(both, kernels.Behind(gate), dtype)
  return inputs.Pending(compute, (run(kernels.Behind()),), gate)


def embed(params: dict, ids, dtype):
  """Rows of an embedding: `kernel` [vocabulary, features], float or a QTensor, gives [..., features] of `dtype`."""
  return jnp.take(dense_kernel(params), ids, axis=0).astype(dtype)


def dense_kernel(params: dict):
  """The values of the layer's kernel as an array, whatever it is made of."""
  kernel = effective_kernel(params)
  if isinstance(kernel, device_kernels.DeviceKernel):
    return kernel.dense()
  return quantize.dequantize(kernel) if isinstance(kernel, qtensor.QTensor) else kernel


def effective_kernel(params: dict):
  """The kernel that takes part in the product: rounded if the layer has a kernel quantizer."""
  kernel = params['kernel']
  return params['kernel_quantizer'](kernel) if 'kernel_quantizer' in params else kernel


def _product(activation: inputs.Activation, kernel, bias, implementation: str, transpose: bool):
  dtype = activation.values.dtype
  chosen = _chosen(implementation)
  if isinstance(kernel, device_kernels.DeviceKernel):
    if transpose:
      raise ValueError('a kernel laid out for a device cannot be read transposed; leave the table as it is')
    if implementation != DEQUANTIZED:
      return kernel.in_order(_device_product(activation, kernel, bias, chosen))
    bias = None if bias is None else kernel.in_order(bias)
    kernel = kernel.dense()
  if transpose:
    kernel = kernel.transposed() if isinstance(kernel, qtensor.QTensor) else kernel.T
  integer = isinstance(kernel, qtensor.QTensor) and activation.codes is not None
  if integer and kernel.axis != -2:
    raise ValueError('a kernel with scales per input channel cannot meet integer activations: its scales vary along '
                     'the contraction, so no integer sum can be scaled afterwards; leave the activation unquantized')
  if not integer or implementation == DEQUANTIZED:
    kernel = quantize.dequantize(kernel, dtype) if isinstance(kernel, qtensor.QTensor) else kernel.astype(dtype)
    y = activation.values @ kernel
    return y if bias is None else y + bias.astype(dtype)
  return _integer_product(chosen, activation.values, activation.codes, kernel, bias)


def _chosen(implementation: str) -> str | None:
  """The implementation of `kernels`, None where that chooses."""
  return None if implementation == 'auto' else implementation


@contextlib.contextmanager
def _asked_for(implementation: str | None) -> Iterator[None]:
  """Tells whoever asked for an implementation by its name that it does not take the product."""
  try:
    yield
  except NotImplementedError as error:
    raise errors.UserError(f'{implementation} does not multiply this: {error}; auto takes what does') from error


def _device_product(
    activation: inputs.Activation, kernel: device_kernels.DeviceKernel, bias, implementation,
    behind: kernels.Behind = kernels.Behind()):
  """The product with a kernel that is laid out, outputs as they lie there."""
  dtype, codes, features = activation.values.dtype, activation.codes, activation.values.shape[-1]
  if features != kernel.shape[0]:  # which padding would hide
    raise ValueError(f'an activation of {features} features meets a kernel of {kernel.shape[0]} inputs')
  if codes is None:
    # There is no simulation of a product without codes.
    implementation = 'xla' if implementation == 'simulated' else implementation
    with _asked_for(implementation):
      return kernels.weight_only_matmul(
          activation.values, kernel.codes, kernel.scale, w_offset=kernel.offset, bias=bias, w_bits=kernel.bits,
          layout=kernel.layout, implementation=implementation, out_dtype=dtype, behind=behind)
  with _asked_for(implementation):
    return kernels.quantized_matmul(
        codes.codes, kernel.codes, codes.scale, kernel.scale, x_offset=codes.offset, w_offset=kernel.offset, bias=bias,
        x_bits=codes.bits, w_bits=kernel.bits, layout=kernel.layout, row_sums=codes.row_sums,
        column_sums=kernel.column_sums, w_zero_point=kernel.zero_point, w_special=kernel.special,
        w_multiplier=kernel.multiplier, implementation=implementation, out_dtype=dtype, behind=behind)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _integer_product(implementation: str | None, values, codes: codes_lib.Codes, kernel: qtensor.QTensor, bias):
  """Codes with codes; differentiates as the product of the dequantized values, so gradients pass straight through."""
  w_codes, w_scale, w_offset, w_bits = device_kernels.integers(kernel)
  with _asked_for(implementation):
    return kernels.quantized_matmul(
        codes.codes, w_codes, codes.scale, w_scale, x_offset=codes.offset, w_offset=w_offset, bias=bias,
        x_bits=codes.bits, w_bits=w_bits, implementation=implementation, out_dtype=values.dtype)


@_integer_product.defjvp
def _(implementation, primals, tangents):
  values, _, kernel, _ = primals
  as_floats = lambda v, scale: v @ quantize.dequantize(dataclasses.replace(kernel, scale=scale), v.dtype)
  _, tangent = jax.jvp(as_floats, (values, kernel.scale), (tangents[0], tangents[2].scale))
  if tangents[3] is not None:
    tangent += tangents[3].astype(tangent.dtype)
  return _integer_product(implementation, *primals), tangent


class Linear(nn.Module):
  """A linear layer of a Linen model: creates a float kernel, then runs whatever the tree holds.

  Attributes:
    features: outputs.
    use_bias: whether initialization creates a bias.
    implementation: see `linear`.
    taps: statistics to read at `output`, `input` and `quantized_input`.
    initializer: of the kernel.
  """

  features: int
  use_bias: bool = False
  implementation: str = 'simulated'
  taps: tuple[tap.Tap, ...] = ()
  initializer: Any = nn.initializers.normal(0.02)

  @nn.compact
  def __call__(self, x, shared_kernel=None):
    """Evaluates the layer.

    Args:
      x: activation [..., in], one that is an `inputs.Pending` or an `inputs.Made`, or that its site prepared already.
      shared_kernel: [out, in], used instead of a kernel of its own.

    Returns:
      [..., out].
    """
    if self.is_initializing():
      if shared_kernel is None:
        width = inputs.prepare(None, x).values.shape[-1]
        self.param('kernel', self.initializer, (width, self.features), jnp.float32)
      if self.use_bias:
        self.param('bias', nn.initializers.zeros, (self.features,), jnp.float32)
    # `self.param` would compare shapes with what is in the tree and refuse a QTensor; the model's validator has done
    # that by logical shape.
    params = dict(self.variables.get('params', {}))
    if shared_kernel is not None:
      params['kernel'] = shared_kernel
    if not isinstance(x, inputs.Activation) or params.get('input'):
      x = tap.prepare(self, self.taps, params.pop('input', None), x)
    y = linear(params, x, implementation=self.implementation, transpose=shared_kernel is not None)
    tap.record(self, self.taps, 'output', lambda: y)
    return y
