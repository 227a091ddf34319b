"""The implementation `mosaic_gpu` of `kernels.weight_only_matmul`: 4-bit weights by plain activations."""

import functools
import math

import jax
import jax.numpy as jnp

from kernels import behind as behind_lib
from kernels import dispatch
from kernels import layouts
from kernels import problems
from kernels import static_ranges
from kernels import tuning
from kernels import xla
from kernels.mosaic import calls

# From here on the tensor cores limit both, and a product of dequantized weights is as fast.
MOST_TOKENS = 128
# The operand is the code over 64.
_FACTOR = 64.0


def matmul(x, w_codes, w_scale, *, w_offset, bias, behind, **static):
  """`weight_only.weight_only_matmul` on Hopper; the arguments are checked already.

  Raises:
    NotImplementedError: not on this device, not for this problem, or under differentiation.
  """
  calls.check_device()
  return lowered(dict(x=x, w_codes=w_codes, w_scale=w_scale, w_offset=w_offset, bias=bias), behind=behind, **static)


def lowered(operands: dict, *, layout, w_bits, out_dtype, behind=behind_lib.Behind()):
  """The product, for whatever device it is lowered: maps over leading axes, and refuses to differentiate."""
  x, groups = operands['x'], operands['w_scale'].shape[0]
  tokens = math.prod(x.shape[:-1])
  if not x.size or not operands['w_codes'].size:
    raise NotImplementedError('there is nothing to multiply')
  if tokens > MOST_TOKENS:
    raise NotImplementedError(f'it takes at most {MOST_TOKENS} tokens, not {tokens}')
  if x.dtype != jnp.bfloat16 or out_dtype not in (jnp.bfloat16, jnp.float32):
    raise NotImplementedError(f'it takes bfloat16 and writes it or float32, not {x.dtype} and {jnp.dtype(out_dtype)}')
  if w_bits > 4 or layout not in (layouts.Layout.CODES, layouts.Layout.INT4_WIDE):
    raise NotImplementedError(f'it takes weights of 4 bits, not {w_bits} bits laid out as {layout.value}')
  calls.group_of(x.shape[-1], groups)
  ends, behind = behind.split()
  run = functools.partial(_run, layout=layout, out_dtype=out_dtype, behind=behind)
  return calls.guarded(run, operands | ends, ('x',))


def _run(operands: dict, *, layout, out_dtype, behind):
  """Calls the kernel in the configuration for the problem."""
  (*batch, inputs), groups = operands['x'].shape, len(operands['w_scale'])
  if math.prod(batch) > MOST_TOKENS:  # those of a map together, which nothing knew of before
    whole = behind.join(operands)
    rest = {name: operand for name, operand in operands.items() if name not in static_ranges.NAMES}
    return xla.weight_only(**rest, w_bits=4, layout=layout, out_dtype=out_dtype, behind=whole)
  outputs = layouts.outputs(operands['w_codes'], operands['w_scale'], layout)
  group = calls.group_of(inputs, groups)
  config = tuning.choose(problems.Problem(
      math.prod(batch), outputs, layouts.padded(inputs), layouts.Layout.INT4_WIDE, group),
                         dispatch.device().device_kind)
  return _call(operands, layout=layout, group=group, out_dtype=out_dtype, config=config, behind=behind)


# Traced and lowered once for all layers of a model that are alike, and not once a layer.
@functools.partial(jax.jit, static_argnames=('layout', 'group', 'out_dtype', 'config', 'behind'))
def _call(operands: dict, *, layout, group, out_dtype, config, behind):
  """Brings operands into the shapes of a kernel, calls it, and cuts the result."""
  from kernels.mosaic import decode, epilogue, factors  # pylint: disable=g-import-not-at-top
  x, w, w_scale, w_offset, bias = (operands[name] for name in ('x', 'w_codes', 'w_scale', 'w_offset', 'bias'))
  *batch, inputs = x.shape
  outputs = layouts.outputs(w, w_scale, layout)
  if layout is layouts.Layout.CODES:
    w = layouts.prepack(w, layouts.Layout.INT4_WIDE)
  tokens, groups, length = math.prod(batch), len(w_scale), layouts.padded(inputs)
  x = x.reshape(tokens, inputs)
  rows = calls.whole_rows(tokens)
  covered = calls.next_multiple(tokens, config.tile_m)
  wide = lambda v: jnp.pad(jnp.broadcast_to(v, (len(v), outputs)), ((0, 0), (0, len(w) - outputs)))
  sums = lambda parts: jnp.sum(x.reshape(tokens, parts, -1), axis=-1, dtype=jnp.float32).T
  scale, scaled, rank_one = None, None, ()
  if groups == 1:
    scale = wide(w_scale)[0]
    if w_offset is not None:
      rank_one = ((wide(w_offset)[0], sums(1)[0]),)
  else:
    repeat = lambda v: None if v is None else jnp.repeat(wide(v), inputs // groups // group, axis=0)
    row_sums = None if w_offset is None else jnp.pad(
        sums(inputs // group), ((0, 0), (0, max(covered, 32) - tokens)))
    scaled = factors.Groups(repeat(w_scale), repeat(w_offset), row_sums, _FACTOR)
  bias = None if bias is None else calls.fit(bias.astype(jnp.float32), len(w))
  x = jnp.pad(x, ((0, rows - tokens), (0, length - inputs)))
  y = decode.matmul(
      x, w, epilogue.Terms(scale, None, rank_one, bias, _FACTOR), scaled, tokens=tokens,
      layout=layouts.Layout.INT4_WIDE, out_dtype=out_dtype, config=config, behind=behind.join(operands))
  outputs = behind.outputs(outputs)
  return y[:, :outputs].reshape(*batch, outputs)
