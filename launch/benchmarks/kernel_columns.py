"""The columns of the benchmark of kernels: what each multiplies, in which numbers, and the bytes it has to move."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import kernels
from kernels import activations
from kernels import dint
from kernels import integer_weights
from kernels import layouts
from launch.benchmarks import kernel_reading
from launch.benchmarks import kernel_timing
from launch.benchmarks import kernel_xla


class Problem(NamedTuple):
  """A product of `tokens` x `inputs` activations with `inputs` x `outputs` weights."""

  tokens: int
  outputs: int
  inputs: int


@dataclasses.dataclass(frozen=True)
class Column:
  """One way to multiply.

  Attributes:
    multiply: (activation, weights) -> result, to be jitted.
    activation: (codes, scales) -> the activation.
    weights: (codes, scales) -> the weights.
    bits: bits of weights and of activations, for the bytes that have to be moved.
    groups: whether weights have a scale for each 128 inputs.
    comparable: whether the result is the product of the values, but for rounding.
    values: (codes, scales) -> the values of the weights, float32 [K, N]; None: codes times scales.
    beside: bytes beside the codes of an output, or of each of its groups (those of an output, for both, hardly count).
  """

  multiply: Callable[..., Any]
  activation: Callable[..., Any]
  weights: Callable[..., Any]
  bits: tuple[int, int]
  groups: bool = False
  comparable: bool = True
  values: Callable[..., Any] | None = None
  beside: int = 4

  def lowered(self, problem: Problem):
    """The program that multiplies, to be compiled; nothing is computed."""
    x = jax.eval_shape(lambda: self.activation(*_activation.__wrapped__(problem)))
    w = jax.eval_shape(lambda: self.weights(*_weights.__wrapped__(problem, self.groups, 0)))
    return jax.jit(self.multiply).lower(x, w)

  def calls(self, problem: Problem, program: Callable[..., Any] | None = None) -> list[Callable[[], Any]]:
    """Functions without arguments that multiply, each with a copy of the weights of its own.

    Args:
      problem: what is multiplied.
      program: what `lowered` compiles to; None: it is compiled by the first call.
    """
    x = jax.jit(self.activation)(*_activation(problem))
    weights = jax.jit(self.weights)
    size = problem.inputs * problem.outputs * self.bits[0] // 8
    count = kernel_timing.copies(size) if problem.tokens <= 256 else 1
    operands = [jax.block_until_ready(weights(*_weights(problem, self.groups, seed))) for seed in range(count)]
    multiply = program or jax.jit(self.multiply)
    return [functools.partial(multiply, x, w) for w in operands]

  def bytes(self, problem: Problem) -> float:
    """Bytes of weights, scales, activations and bfloat16 results."""
    groups = problem.inputs // 128 if self.groups else 1
    moved = weight_bytes(problem, self.bits[0]) + problem.tokens * problem.inputs * self.bits[1] / 8
    return moved + self.beside * groups * problem.outputs + 2 * problem.tokens * problem.outputs

  def difference(self, problem: Problem, call: Callable[[], Any]) -> float | None:
    """The norm of the difference from the product of the values, relative to it, if it is to be compared."""
    if not self.comparable:
      return None
    got = call()
    codes, scale = _activation(problem)
    w, w_scale = _weights(problem, self.groups, 0)

    @jax.jit
    def relative(got):
      values = self.values(w, w_scale) if self.values else _dense(w, w_scale, jnp.float32)
      want = _values(codes, scale).astype(jnp.float32) @ values
      return jnp.linalg.norm(got.astype(jnp.float32) - want) / jnp.linalg.norm(want)

    return float(relative(got))


def weight_bytes(problem: Problem, bits: int) -> float:
  """Bytes of the weights' codes."""
  return problem.inputs * problem.outputs * bits / 8


@functools.lru_cache(1)
def _activation(problem: Problem):
  """4-bit codes int8 [M, K] and float32 scales [M, 1], the same for all columns."""
  keys = jax.random.split(jax.random.key(0))
  codes = jax.random.randint(keys[0], (problem.tokens, problem.inputs), -8, 8, jnp.int8)
  return codes, jax.random.uniform(keys[1], (problem.tokens, 1), jnp.float32, 0.01, 0.02)


@functools.lru_cache(32)
def _weights(problem: Problem, groups: bool, seed: int):
  """4-bit codes int8 [K, N] and float32 scales [W, N]; the scales of groups differ."""
  keys = jax.random.split(jax.random.key(seed + 1))
  codes = jax.random.randint(keys[0], (problem.inputs, problem.outputs), -8, 8, jnp.int8)
  count = problem.inputs // 128 if groups else 1
  return codes, jax.random.uniform(keys[1], (count, problem.outputs), jnp.float32, 0.001, 0.002)


def _values(codes, scale, dtype=jnp.bfloat16):
  return (codes * scale).astype(dtype)


def _dense(codes, scale, dtype=jnp.bfloat16):
  spread = jnp.repeat(scale, codes.shape[0] // scale.shape[0], axis=0)
  return (codes.astype(jnp.float32) * spread).astype(dtype)


def _int4(codes, scale):
  return codes.astype(jnp.int4), scale


def _packed(layout, codes, scale):
  return layouts.prepack(codes, layout), scale


def _quantized(bits, layout, x, w):
  return kernels.quantized_matmul(
      x[0], w[0], x[1], w[1], x_bits=bits[1], w_bits=bits[0], layout=layout, implementation='mosaic_gpu',
      out_dtype=jnp.bfloat16)


def _packed_activation(codes, scale):
  return activations.pack(codes), scale


def _of_packed(x, w):
  """Activations of two codes a byte, which are unpacked on the way: the bytes saved against a pass more."""
  return _quantized((4, 4), kernels.Layout.INT4, (activations.unpack(x[0]), x[1]), w)


def _static(x, w):
  """One scale and one lower end for the whole activation, the latter folded into a bias, for which a scale stands."""
  return kernels.quantized_matmul(
      x[0], w[0], x[1][0, 0], w[1], bias=w[1][0], x_bits=4, w_bits=4, layout=kernels.Layout.INT4,
      implementation='mosaic_gpu', out_dtype=jnp.bfloat16)


def _reading(x, w):
  """Nothing but the reading of the weights, for as many tokens as it bounds."""
  if len(x[0]) > 64:
    raise NotImplementedError('reading bounds products of few tokens, at most 64')
  return kernel_reading.read(w[0])


def _weight_only(x, w):
  return kernels.weight_only_matmul(
      x, w[0], w[1], w_bits=4, layout=kernels.Layout.INT4_WIDE, implementation='mosaic_gpu', out_dtype=jnp.bfloat16)


def _codes_column(weight_bits, activation_bits, groups=False) -> Column:
  layout = kernels.Layout.INT4 if weight_bits == 4 else kernels.Layout.ROWS
  bits = weight_bits, activation_bits
  return Column(functools.partial(_quantized, bits, layout), lambda *x: x, functools.partial(_packed, layout), bits,
                groups)


def _zero_points(codes, scale):
  """Zero points int32 like the scales: all there are, one output after another."""
  return jnp.broadcast_to(jnp.arange(codes.shape[1], dtype=jnp.int32) % dint.PLUS, scale.shape)


def _packed_dint(codes, scale):
  return *_packed(kernels.Layout.DINT4, codes & 15, scale), _zero_points(codes, scale)


def _dense_dint(codes, scale):
  """The values of the same codes read as dINT's, 0 to 15."""
  packed, scale, zero_point = _packed_dint(codes, scale)
  return _dense(integer_weights.integers(packed, kernels.Layout.DINT4, codes.shape, zero_point), scale, jnp.float32)


def _dint(x, w):
  return kernels.quantized_matmul(
      x[0], w[0], x[1], w[1], w_bits=6, layout=kernels.Layout.DINT4, w_zero_point=w[2], implementation='mosaic_gpu',
      out_dtype=jnp.bfloat16)


def _packed_two_level(codes, scale):
  """Codes, the first group's scales for whole outputs, and multipliers: all there are, in every output and group."""
  groups, outputs = scale.shape
  multiplier = (jnp.arange(groups, dtype=jnp.int32)[:, None] + jnp.arange(outputs)) % integer_weights.MOST + 1
  return *_packed(kernels.Layout.INT4, codes, scale[:1]), multiplier


def _dense_two_level(codes, scale):
  packed, scale, multiplier = _packed_two_level(codes, scale)
  integers = integer_weights.integers(packed, kernels.Layout.INT4, codes.shape, multiplier=multiplier)
  return _dense(integers, scale, jnp.float32)


def _two_level(x, w):
  return kernels.quantized_matmul(
      x[0], w[0], x[1], w[1], w_bits=4, layout=kernels.Layout.INT4, w_multiplier=w[2], implementation='mosaic_gpu',
      out_dtype=jnp.bfloat16)


_DINT = Column(_dint, lambda *x: x, _packed_dint, (4, 8), values=_dense_dint, beside=8)
_WIDE = functools.partial(_packed, kernels.Layout.INT4_WIDE)

OF_XLA = ('bf16', 'xla int8', 'xla w4a16', 'xla w4a16 g128', 'xla w4a8')
COLUMNS = {
    'bf16': Column(jnp.matmul, _values, _dense, (16, 16)),
    'xla int8': Column(kernel_xla.int8, lambda codes, _: codes, lambda codes, _: codes.T, (8, 8),
                       comparable=False),
    'xla w4a16': Column(kernel_xla.weight_only, _values, _int4, (4, 16)),
    'xla w4a16 g128': Column(lambda x, w: x @ _dense(*w), _values, _int4, (4, 16), groups=True),
    'xla w4a8': Column(kernel_xla.int4, lambda codes, _: codes, lambda codes, _: codes.astype(jnp.int4), (4, 8),
                       comparable=False),
    'reading': Column(_reading, lambda *x: x, functools.partial(_packed, kernels.Layout.INT4), (4, 8),
                      comparable=False),
    'w8a8': _codes_column(8, 8),
    'w4a8': _codes_column(4, 8),
    'w4a4': _codes_column(4, 4),
    'w4a4 packed': Column(_of_packed, _packed_activation, functools.partial(_packed, kernels.Layout.INT4), (4, 4)),
    'w4a4 static': Column(_static, lambda *x: x, functools.partial(_packed, kernels.Layout.INT4), (4, 4),
                          comparable=False),
    'w4a8 g128': _codes_column(4, 8, groups=True),
    'w4a4 g128': _codes_column(4, 4, groups=True),
    'w4a8 two-level': Column(_two_level, lambda *x: x, _packed_two_level, (4, 8), groups=True, values=_dense_two_level),
    'dint4 a8': _DINT,
    'dint4 a8 g128': dataclasses.replace(_DINT, groups=True),
    'w4a16': Column(_weight_only, _values, _WIDE, (4, 16)),
    'w4a16 g128': Column(_weight_only, _values, _WIDE, (4, 16), groups=True),
}
# Those of kernels that `kernels.tuning` finds configurations for.
TUNED = tuple(name for name in COLUMNS if name not in (*OF_XLA, 'reading'))
