"""Problems that all kernels are lowered and compiled for, of abstract operands: nothing here needs a device."""

from collections.abc import Callable
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import kernels
from kernels import layouts
from kernels import problems
from kernels.mosaic import activations
from kernels.mosaic import attention
from kernels.mosaic import matmul
from kernels.mosaic import weight_only

_SIZES = ((4096, 4096), (14336, 4096), (4096, 14336))  # outputs, inputs
_APART = 5120, 13_824  # more than half of the multiprocessors have a block
_GATE = 22_016, 4096  # a gate and what it multiplies
_TOKENS = (1, 16, 64, 256, 8192)
# Bits of the integers that codes of a layout stand for.
BITS = {kernels.Layout.INT4: 4, kernels.Layout.ROWS: 8, kernels.Layout.DINT4: 6}
_CODES = {kernels.Layout.INT4: 'W4A8', kernels.Layout.ROWS: 'W8A8', kernels.Layout.DINT4: 'dINT4A8'}


class Case(NamedTuple):
  """A kernel and what it is called with.

  Attributes:
    name: for tables and tests.
    call: takes the operands.
    operands: `jax.ShapeDtypeStruct` by name; None for what is not there.
  """

  name: str
  call: Callable[[dict[str, Any]], Any]
  operands: dict[str, Any]


def product(
    tokens, outputs, inputs, layout, *, groups=1, x_offset=None, w_offset=False, bias=False, multipliers=None,
) -> dict[str, Any]:  # pyformat: disable
  """Operands of `kernels.mosaic.matmul.lowered`.

  `x_offset` is None, `scalar` or `token`, `multipliers` the number of groups that have them, or None.
  """
  of = jax.ShapeDtypeStruct
  scalar, token, output = (of(shape, jnp.float32) for shape in ((), (tokens, 1), (groups, outputs)))
  x_scale = scalar if x_offset == 'scalar' else token
  zero_point = of((groups, outputs), jnp.int32) if layout is kernels.Layout.DINT4 else None
  multiplier = of((multipliers, outputs), jnp.int32) if multipliers else None
  return dict(
      x_codes=of((tokens, inputs), jnp.int8), w_codes=of(layouts.shape(layout, inputs, outputs), jnp.int8),
      x_scale=x_scale, w_scale=output, x_offset=x_scale if x_offset else None,
      w_offset=output if w_offset else None, bias=of((outputs,), jnp.float32) if bias else None, row_sums=None,
      column_sums=of((outputs,), jnp.float32) if x_offset else None, w_zero_point=zero_point, w_multiplier=multiplier)


def every() -> list[Case]:
  """Few and many tokens of the sizes of models: all layouts, groups and terms that change a kernel's registers."""
  int4, rows, dint4 = BITS
  few, many, small = 16, 256, _SIZES[0]
  return [
      # The layout changes how a tile of weights is read, which has no part in how many tiles there are.
      *itertools.starmap(_codes, itertools.product(_SIZES, _TOKENS, [int4])),
      *itertools.starmap(_codes, itertools.product([_SIZES[1]], _TOKENS, [rows])),
      *itertools.starmap(_codes, itertools.product([_SIZES[1]], _TOKENS, [dint4])),
      *itertools.starmap(_codes, itertools.product(_SIZES, [1, 64, 256, 8192], [int4], [128])),
      *itertools.starmap(_codes, itertools.product([small, _SIZES[2]], [1, 64, 8192], [int4], [128], [True])),
      *itertools.starmap(_codes, itertools.product([small], [few, many], [int4], [64, 32])),
      # Folded tiles of more than 16 tokens.
      *itertools.starmap(_codes, itertools.product([small, _SIZES[2]], [24, 32], [int4, dint4])),
      *itertools.starmap(_two_level, itertools.product([small], [32], [128])),
      # Tiles of 48.
      *itertools.starmap(_codes, itertools.product(_SIZES[1:], [40], [int4, dint4])),
      *itertools.starmap(_codes, itertools.product([_SIZES[1]], [40], [int4, dint4], [128, 64], [True])),
      *itertools.starmap(_two_level, itertools.product([_SIZES[1]], [40], [128, 64])),
      *itertools.starmap(_codes, itertools.product([_APART], [few, 40, 64], BITS)),
      *itertools.starmap(_codes, itertools.product([_APART], [few], [int4, dint4], [128, 64], [True])),
      *itertools.starmap(_two_level, itertools.product([_APART], [few], [128])),
      *itertools.starmap(_plain, itertools.product([_APART], [few, 64], [128], [True])),
      # Tiles between few tokens and many, of one warpgroup and of two.
      *itertools.starmap(_codes, itertools.product(_SIZES[:2], [80, 192], [int4, dint4])),
      *itertools.starmap(_codes, itertools.product([small], [128], BITS)),
      *itertools.starmap(_codes, itertools.product([small], [80, 128, 192], [int4], [128], [True])),
      # Small groups: tiles of 112 tokens, and of 96.
      *itertools.starmap(_codes, itertools.product([small], [8192], [int4], [64], [True])),
      *itertools.starmap(_codes, itertools.product([_SIZES[1]], [few, many], [int4, dint4], [64])),
      *itertools.starmap(_codes, itertools.product([small], [few, many], [rows], [128, 64])),
      *itertools.starmap(_codes, itertools.product([small], [few, many], [dint4], [None, 128, 32])),
      *itertools.starmap(_two_level, itertools.product(_SIZES[:2], _TOKENS, [128])),
      *itertools.starmap(_two_level, itertools.product([small], [few, many], [64, 32])),
      *itertools.starmap(_plain, itertools.product([small], [1, 16, 64, 128], [None, 128], [False, True])),
      *itertools.starmap(_plain, itertools.product(_SIZES[1:], [1, 16, 64, 128], [128], [True])),
      *itertools.starmap(_gated, itertools.product([
          *(_codes(_GATE, tokens, int4) for tokens in (1, few, 64, 2048)), _codes(_GATE, few, dint4),
          _codes(_GATE, few, int4, 128), _two_level(_GATE, few, 128), _plain(_GATE, few, 128, False)], [False, True])),
      *itertools.starmap(_attention, itertools.product(
          [(1, 32, 32, 128), (1, 32, 8, 8192), (16, 32, 32, 2048), (16, 32, 8, 2048)], [False, True], [False, True])),
      *itertools.starmap(_quantization, [
          ('int8', {}), ('uint8, sums of 128', dict(symmetric=False, group_size=128)),
          ('int4 packed', dict(bits=4, packed=True)), ('int8 static', dict(static=True)),
          ('int8 of an RMSNorm', dict(norm='rms')), ('int8 of a LayerNorm', dict(norm='layer')),
          ('int8 of a LayerNorm', dict(norm='layer', features=8192)),
          ('int8 of an RMSNorm of a sum', dict(norm='rms', tokens=16, added=True)),
          ('int8 behind a gate', dict(gate='silu')), ('int8 behind a gate', dict(gate='silu', tokens=16)),
          ('int8 static of an RMSNorm of a sum', dict(norm='rms', tokens=16, added=True, static=True)),
          ('int8 static behind a gate', dict(gate='silu', static=True, tokens=2048, features=11_008)),
          ('int8 of a shift and a scale', dict(channels=True)),
          ('int8 of a Hadamard transform of 64', dict(hadamard=64)),
          ('int8 of a Hadamard transform of 128', dict(hadamard=128)),
          ('int8 of a Hadamard transform of 4096', dict(hadamard=4096)),
          ('int8 of a Hadamard transform of 256 behind a gate',
           dict(hadamard=256, gate='silu', tokens=2048, features=11_008)),
          ('int8 of a Hadamard transform of 4096 of an RMSNorm', dict(hadamard=4096, norm='rms', features=12_288))])]


def of_problem(problem: problems.Problem) -> Case:
  """The case of a problem that configurations are measured for."""
  size = problem.outputs, problem.inputs
  if problem.layout is kernels.Layout.INT4_WIDE:
    return _plain(size, problem.tokens, problem.group, False)
  if problem.two_level:
    return _two_level(size, problem.tokens, problem.group)
  return _codes(size, problem.tokens, problem.layout, problem.group, x_bits=4 if problem.four_bits else 8)


def _codes(size, tokens, layout, group=None, w_offset=False, x_bits=8) -> Case:
  """Codes by codes."""
  outputs, inputs = size
  operands = product(tokens, outputs, inputs, layout, groups=inputs // group if group else 1, w_offset=w_offset)
  call = functools.partial(matmul.lowered, layout=layout, x_bits=x_bits, w_bits=BITS[layout], out_dtype=jnp.bfloat16)
  return Case(_name(_CODES[layout], size, tokens, group, w_offset), call, operands)


def _two_level(size, tokens, group) -> Case:
  """Codes by codes that are multiplied by an integer of their group."""
  outputs, inputs = size
  operands = product(tokens, outputs, inputs, kernels.Layout.INT4, multipliers=inputs // group)
  call = functools.partial(
      matmul.lowered, layout=kernels.Layout.INT4, x_bits=8, w_bits=8, out_dtype=jnp.bfloat16)
  return Case(_name('W4A8 two-level', size, tokens, group, False), call, operands)


def _plain(size, tokens, group, w_offset) -> Case:
  """Plain activations by codes."""
  (outputs, inputs), of, layout = size, jax.ShapeDtypeStruct, kernels.Layout.INT4_WIDE
  scale = of((inputs // group if group else 1, outputs), jnp.float32)
  operands = dict(
      x=of((tokens, inputs), jnp.bfloat16), w_codes=of(layouts.shape(layout, inputs, outputs), jnp.int8), w_scale=scale,
      w_offset=scale if w_offset else None, bias=None)
  call = functools.partial(weight_only.lowered, layout=layout, w_bits=4, out_dtype=jnp.bfloat16)
  return Case(_name('W4A16', size, tokens, group, w_offset), call, operands)


def _gated(case: Case, static: bool) -> Case:
  """A product of a gate and what it multiplies, the result as numbers or as codes."""
  def call(operands):
    rest, known = _split(operands)
    return case.call(rest, behind=kernels.Behind('silu', known, 4))

  return Case(f'{case.name}, gated' + ' to codes' * static, call, case.operands | {'range': _range(static)})


def _range(static):
  """The scale of a static range, if there is one."""
  return jax.ShapeDtypeStruct((), jnp.float32) if static else None


def _split(operands: dict[str, Any]) -> tuple[dict[str, Any], kernels.StaticRange | None]:
  """(the other operands, the static range if there is one)."""
  scale = operands['range']
  rest = {name: operand for name, operand in operands.items() if name != 'range'}
  return rest, None if scale is None else kernels.StaticRange(scale)


def _attention(shape, coded, static) -> Case:
  """Attention of a token of each row over the cache, which may be one of codes, and so may be the result."""
  (rows, heads, kv_heads, slots), of, dim, dtype = shape, jax.ShapeDtypeStruct, 128, jnp.bfloat16
  numbers = of((rows, kv_heads, slots, dim), jnp.int8 if coded else dtype)
  scales = of((rows, kv_heads, slots), jnp.float32) if coded else None
  operands = dict(
      qkv=of((rows, heads + 2 * kv_heads, dim), dtype), cache=kernels.Cache(numbers, numbers, scales, scales),
      positions=of((rows,), jnp.int32), angles=(of((rows, dim // 2), jnp.float32),) * 2, range=_range(static))

  def call(operands):
    rest, known = _split(operands)
    return attention.lowered(**rest, window=None, behind=kernels.Behind(static=known))

  name = f'attention of {rows} x {heads} heads over {kv_heads} x {slots}' + ' of codes' * coded + ' to codes' * static
  return Case(name, call, operands)


def _quantization(name, options) -> Case:
  """Activations to codes."""
  options = dict(options)
  features, tokens = options.pop('features', 4096), options.pop('tokens', 8192)
  added, gate = options.pop('added', False), options.pop('gate', None)
  norm, static, hadamard = options.pop('norm', None), options.pop('static', False), options.pop('hadamard', 1)
  channels = options.pop('channels', False)
  vector = jax.ShapeDtypeStruct((features,), jnp.float32)
  operands = dict(
      x=jax.ShapeDtypeStruct((tokens, 2 * features if gate else features), jnp.bfloat16),
      addend=jax.ShapeDtypeStruct((tokens, features), jnp.bfloat16) if added else None, gain=vector if norm else None,
      bias=vector if norm == 'layer' else None, shift=vector if channels else None, scale=vector if channels else None,
      range=_range(static))

  def call(operands):
    vectors = {name: operands[name] for name in ('gain', 'bias', 'shift', 'scale')}
    before = kernels.Before(norm, **vectors, hadamard=hadamard, gate=gate)
    known = _split(operands)[1]
    defaults = dict(bits=8, symmetric=True, group_size=features, packed=False, addend=operands['addend'])
    return activations.lowered(operands['x'], before=before, static=known, **defaults | options)

  return Case(f'{name}, {tokens} x {features}', call, operands)


def _name(codes, size, tokens, group, w_offset) -> str:
  text = f'{codes} {size[0]} x {size[1]}, tokens: {tokens}'
  return text + (f', groups of {group}' if group else '') + ', offsets' * w_offset
