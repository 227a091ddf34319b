"""The implementation `mosaic_gpu` of `kernels.quantized_matmul`: what it takes, and how operands become kernels'."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from kernels import behind as behind_lib
from kernels import checks
from kernels import dint
from kernels import dispatch
from kernels import integer_weights
from kernels import layouts
from kernels import problems
from kernels import tuning
from kernels.mosaic import calls
from kernels.mosaic import configs

_DTYPES = (jnp.bfloat16, jnp.float16, jnp.float32)


def matmul(x_codes, w_codes, x_scale, w_scale, *, x_offset, w_offset, bias, row_sums, column_sums,
           w_zero_point, w_multiplier, behind, **static):
  """`matmul.quantized_matmul` on Hopper; the arguments are checked already.

  Raises:
    NotImplementedError: not on this device, not for this problem, or under differentiation.
  """
  calls.check_device()
  operands = dict(x_codes=x_codes, w_codes=w_codes, x_scale=x_scale, w_scale=w_scale, x_offset=x_offset,
                  w_offset=w_offset, bias=bias, row_sums=row_sums, column_sums=column_sums,
                  w_zero_point=w_zero_point, w_multiplier=w_multiplier)
  return lowered(operands, behind=behind, **static)


def lowered(operands: dict, *, layout, x_bits, w_bits, out_dtype, w_special=1 / 2, behind=behind_lib.Behind()):
  """The product, for whatever device it is lowered: maps over leading axes, and refuses to differentiate."""
  target = _check(operands, layout, x_bits, w_bits, out_dtype)
  ends, behind = behind.split()
  run = functools.partial(_run, given=layout, layout=target, x_bits=x_bits, out_dtype=out_dtype, w_special=w_special,
                          behind=behind)
  return calls.guarded(run, operands | ends, ('x_codes', 'x_scale', 'x_offset', 'row_sums'))


def _check(operands, layout, x_bits, w_bits, out_dtype):
  """The device layout to use; raises `NotImplementedError` for what no kernel takes."""
  if not operands['x_codes'].size or not operands['w_codes'].size:
    raise NotImplementedError('there is nothing to multiply')
  if operands['x_scale'].ndim and operands['x_scale'].shape[-1] > 1:
    raise NotImplementedError(f'it takes one scale a token, not {operands["x_scale"].shape[-1]} groups of inputs')
  if operands['w_codes'].dtype != jnp.int8 or w_bits > 8:
    raise NotImplementedError(f'it takes weights of at most 8 bits, not {w_bits}')
  if out_dtype not in _DTYPES:
    raise NotImplementedError(f'it writes bfloat16, float16 or float32, not {jnp.dtype(out_dtype)}')
  if layout is layouts.Layout.CODES:
    layout = layouts.Layout.INT4 if w_bits <= 4 or _two_level(operands) else layouts.Layout.ROWS
  if layout is layouts.Layout.INT4_WIDE:
    raise NotImplementedError(f'the layout {layout.value} is for activations that are not quantized')
  if layout is layouts.Layout.DINT4 and w_bits > 7:
    raise NotImplementedError(f'it takes dINT codes of integers of at most 7 bits, not {w_bits}')
  groups, length = _groups(operands), operands['x_codes'].shape[-1]
  if calls.group_of(length, groups) == 32 and layout is layouts.Layout.ROWS:
    raise NotImplementedError(f'it takes groups of {length // groups} inputs of weights of 4 bits only')
  stored_bits = {layouts.Layout.INT4: 8, layouts.Layout.DINT4: w_bits + 1}.get(layout, w_bits)  # with their factors
  if length // len(operands['w_scale']) > (most := checks.LARGEST_INT32 >> (x_bits + stored_bits - 2)):
    raise NotImplementedError(f'its sums over more than {most} inputs may exceed int32')
  return layout


def _two_level(operands: dict) -> bool:
  """Whether groups of inputs have an integer each beside the scale of their output."""
  return operands.get('w_multiplier') is not None


def _groups(operands: dict) -> int:
  """Groups of inputs that share a scale or a multiplier."""
  return len(operands['w_multiplier' if _two_level(operands) else 'w_scale'])


def _run(operands: dict, *, given, layout, x_bits, **static):
  """Calls the kernel in the configuration for the problem."""
  (*batch, inputs), groups = operands['x_codes'].shape, _groups(operands)
  outputs = layouts.outputs(operands['w_codes'], operands['w_scale'], given)
  group = calls.group_of(inputs, groups)
  two_level = _two_level(operands)
  four_bits = x_bits <= 4 and layout is not layouts.Layout.DINT4 and not two_level
  config = tuning.choose(
      problems.Problem(math.prod(batch), outputs, layouts.padded(inputs), layout, group, four_bits, two_level),
      dispatch.device().device_kind)
  return _call(operands, given=given, layout=layout, group=group, config=config, **static)


# Traced and lowered once for all layers of a model that are alike, and not once a layer.
@functools.partial(
    jax.jit, static_argnames=('given', 'layout', 'group', 'out_dtype', 'config', 'w_special', 'behind'))
def _call(operands: dict, *, given, layout, group, out_dtype, config, w_special, behind):
  """Brings operands into the shapes of a kernel, calls it, and cuts the result."""
  # Kernels import much of Mosaic, which a process without a GPU need not load.
  from kernels.mosaic import decode, epilogue, factors, prefill, registers  # pylint: disable=g-import-not-at-top
  x, w, w_scale, w_offset, x_scale, x_offset, bias, row_sums, column_sums = (operands[name] for name in (
      'x_codes', 'w_codes', 'w_scale', 'w_offset', 'x_scale', 'x_offset', 'bias', 'row_sums', 'column_sums'))
  w_zero_point, w_multiplier = operands.get('w_zero_point'), operands.get('w_multiplier')
  *batch, inputs = x.shape
  outputs = layouts.outputs(w, w_scale, given)
  spread = lambda v: None if v is None else jnp.broadcast_to(v, (v.shape[0], outputs))
  w_scale, w_offset = spread(w_scale), spread(w_offset)
  if x_offset is not None and column_sums is None:
    integers = integer_weights.integers(w, given, (inputs, outputs), w_zero_point, w_special, w_multiplier)
    column_sums = layouts.column_sums(integers, w_scale, w_offset)
  if given is layouts.Layout.CODES:
    w = layouts.prepack(w, layout)

  tokens, groups, length = math.prod(batch), len(w_scale), layouts.padded(inputs)
  # Copies read zeros beyond the activations and write nothing beyond the result, but more than 8 rows of either have to
  # be a multiple of 8; threads that store results of few tokens know which there are. For many tokens, vectors are read
  # without a copy and have to cover whole tiles.
  rows = calls.whole_rows(tokens)
  covered = calls.next_multiple(tokens, config.tile_m)
  decoding = isinstance(config, configs.Decode)
  # Whatever is computed here costs a launch beside the kernel's, hence as little as possible.
  of_tokens = lambda v: v.reshape(1) if v.ndim == 0 else calls.fit(
      jnp.broadcast_to(v, (*batch, 1)).reshape(tokens), tokens if decoding else covered)
  of_outputs = lambda v: calls.fit(v.astype(jnp.float32).reshape(outputs), len(w))

  if w_offset is not None or config.float8:
    row_sums = _row_sums(x if row_sums is None else row_sums, x, tokens, 1 if group is None else inputs // group)
  repeat = lambda v: jnp.pad(
      jnp.repeat(v, inputs // len(v) // group, axis=0), ((0, 0), (0, len(w) - v.shape[1])))
  unpacking = lambda v, unpack: factors.Unpacking(calls.fit(v[0], len(w)) if group is None else repeat(v), unpack)
  factor, unpacked = 1.0, None
  if config.float8:  # the operand is (code + 8) / 512
    x, factor = x.astype(jnp.float8_e4m3fn), 512.0
    w_offset = (0 if w_offset is None else w_offset) - 8 * w_scale
  elif w_multiplier is not None:
    unpacked = unpacking(w_multiplier, registers.int4_times)
  elif layout is layouts.Layout.INT4:  # the operand is 16 * code
    factor = 1 / 16
  elif layout is layouts.Layout.DINT4:  # the operand is 2 * integer
    factor = 1 / 2
    unpacked = unpacking(
        w_zero_point, functools.partial(registers.dint4_times_2, per_step=dint.per_step(w_special)))
  rank_one, scale, scaled = [], None, None
  if x_offset is not None:
    rank_one.append((of_outputs(column_sums), of_tokens(x_offset)))
  if groups == 1:
    scale = of_outputs(w_scale[0])
    if w_offset is not None:
      of_token = row_sums.reshape(*batch, 1) * x_scale
      rank_one.append((of_outputs(w_offset[0]), of_tokens(of_token)))
  else:
    scaled = factors.Groups(repeat(w_scale), factor=factor)
    if w_offset is not None:
      scaled = dataclasses.replace(
          scaled, offset=repeat(w_offset), row_sums=jnp.pad(row_sums.T, ((0, 0), (0, max(covered, 32) - tokens))))
  terms = epilogue.Terms(
      scale, of_tokens(x_scale), tuple(rank_one), None if bias is None else of_outputs(bias), factor)

  x = jnp.pad(x.reshape(tokens, inputs), ((0, rows - tokens), (0, length - inputs)))
  behind, options = behind.join(operands), dict(layout=layout, out_dtype=out_dtype, config=config, unpacking=unpacked)
  if decoding:
    y = decode.matmul(x, w, terms, scaled, tokens=tokens, behind=behind, **options)
    outputs = behind.outputs(outputs)
    return y[:, :outputs].reshape(*batch, outputs)
  y = prefill.matmul(x, w, terms, scaled, **options)
  return behind_lib.apply(y[:tokens, :outputs].reshape(*batch, outputs), behind, out_dtype)


def _row_sums(sums, x, tokens: int, runs: int):
  """Sums of the codes of `runs` parts of the inputs, float32 [tokens, runs], from those of smaller parts or from x."""
  parts = sums if sums.shape[-1] % runs == 0 else x
  return jnp.sum(parts.reshape(tokens, runs, -1), axis=-1, dtype=jnp.int32).astype(jnp.float32)
