"""Device layouts of weight codes: made from plain codes when a model is loaded, never saved.

A tensor core reads an operand from registers in a fixed pattern. These layouts put codes where the unpacking of a word
leaves them in that pattern, without exchanging anything between threads; `n` counts outputs, `k` inputs:

  CODES  int8 or int16 [K, N]: plain codes, as checkpoints order them
  ROWS   int8 [N, K']: a row for each output, contiguous along the contraction
  INT4   int8 [N, K' / 2]: for products of 8-bit operands. Byte 32 b + j, j < 32, holds k = 64 b + j in its low nibble
         and k = 64 b + 32 + j in its high one: two runs of the 32 inputs that one 8-bit matrix instruction contracts.
         A 32-bit word is 4 neighbors of each run, and a mask (after a shift for the low nibbles) turns it into 4 bytes
         of 16 times the code.
  DINT4  int8 [N, K' / 2]: codes 0 .. 15 of dINT (kernels.dint) for products of 8-bit operands. Word 8 b + j, j < 8, of
         a row holds k = 64 b + 4 j + i, i < 4, in nibble i and k = 64 b + 32 + 4 j + i in nibble 4 + i: the four codes
         that a byte permutation looks up in a table at once are neighbors.
  INT4_WIDE  int8 [N, K' / 2]: for products of 16-bit operands. Word 4 b + t, t < 4, of a row holds
         k = 32 b + 8 p + 2 t + e, p < 4, e < 2, in nibble p + 4 e: the pairs that thread t of a quad owns in the two
         16-input instructions of the run. A mask turns a word into a pair of 16-bit numbers.

K' and N are padded with zero codes to multiples of `PADDING`, which adds nothing to a sum; in DINT4, where a zero code
is a value of its own, because activations are padded with zeros as well.
"""

import enum
import math
from typing import Any

import jax
import jax.numpy as jnp

from kernels import checks

PADDING = 128


class Layout(enum.Enum):
  """How codes lie in memory; see the module's docstring."""

  CODES = 'codes'
  ROWS = 'rows'
  INT4 = 'int4'
  INT4_WIDE = 'int4_wide'
  DINT4 = 'dint4'


def check(layout: Any) -> None:
  """Raises `ValueError` for what is no `Layout`."""
  if not isinstance(layout, Layout):
    raise ValueError(f'the layout must be a kernels.Layout, not {layout!r}')


def padded(size: int) -> int:
  """The next multiple of `PADDING`."""
  return math.ceil(size / PADDING) * PADDING


def shape(layout: Layout, inputs: int, outputs: int) -> tuple[int, int]:
  """The shape of weights of `inputs` x `outputs` in `layout`."""
  if layout is Layout.CODES:
    return inputs, outputs
  return padded(outputs), padded(inputs) // (1 if layout is Layout.ROWS else 2)


def outputs(w_codes, w_scale, layout: Layout) -> int:
  """The outputs of weights in a layout; scales of plain codes may be one for all, and only others may be padded."""
  return w_codes.shape[-1] if layout is Layout.CODES and w_codes.ndim else w_scale.shape[1]


def prepack(w_codes, layout: Layout):
  """Weights in a device layout.

  Args:
    w_codes: int8 [..., K, N]; in the 4-bit layouts codes from -8 to 7, or from 0 to 15 in DINT4. For CODES int16, too.
    layout: the layout to make.

  Returns:
    int8 of `shape(layout, K, N)` behind the leading axes (for `CODES` the argument itself).

  Raises:
    ValueError: the codes are not int8, known codes do not fit 4 bits, or the layout is none.
  """
  check(layout)
  checks.arrays(w_codes=w_codes)
  if w_codes.dtype not in ((jnp.int8, jnp.int16) if layout is Layout.CODES else (jnp.int8,)) or w_codes.ndim < 2:
    raise ValueError(f'layouts are made of int8 codes [..., K, N], not {w_codes.dtype} {list(w_codes.shape)}')
  if layout is Layout.CODES:
    return w_codes
  if layout is not Layout.ROWS:
    checks.within('a code of 4 bits', w_codes, *((0, 15) if layout is Layout.DINT4 else (-8, 7)))
  if w_codes.ndim > 2:
    return jax.vmap(lambda codes: prepack(codes, layout))(w_codes)
  rows = jnp.pad(w_codes.T, [(0, padded(size) - size) for size in reversed(w_codes.shape)])
  outputs, inputs = rows.shape
  if layout is Layout.ROWS:
    return rows
  if layout is Layout.INT4:
    low, high = jnp.unstack(rows.reshape(outputs, inputs // 64, 2, 32), axis=2)
  elif layout is Layout.DINT4:
    # Axes: output, block, run, word, nibble -> output, block, word, run, nibble; neighbors share a byte.
    nibbles = rows.reshape(outputs, inputs // 64, 2, 8, 4).transpose(0, 1, 3, 2, 4)
    low, high = jnp.unstack(nibbles.reshape(outputs, inputs // 2, 2), axis=-1)
  else:
    # Axes: output, run, pair p, thread t, element e -> output, run, thread, byte; byte i has nibbles 2 i and 2 i + 1.
    nibbles = rows.reshape(outputs, inputs // 32, 4, 4, 2).transpose(0, 1, 3, 4, 2)
    low, high = jnp.unstack(nibbles.reshape(outputs, inputs // 8, 4, 2), axis=-1)
  return ((low & 15) | (high << 4)).reshape(outputs, inputs // 2)


def unpack(weights, layout: Layout, size: tuple[int, int]):
  """The plain codes int8 [K, N] of weights in a layout; `size` is (K, N). The inverse of `prepack`."""
  if layout is Layout.CODES:
    return weights
  inputs, outputs = size
  if layout is not Layout.ROWS:
    rows, length = weights.shape
    low, high = (weights << 4) >> 4, weights >> 4  # an arithmetic shift extends the sign
    if layout is Layout.INT4:
      runs = jnp.stack([part.reshape(rows, length // 32, 32) for part in (low, high)], axis=2)
    elif layout is Layout.DINT4:
      nibbles = jnp.stack([low & 15, high & 15], axis=-1).reshape(rows, length // 32, 8, 2, 4)
      runs = nibbles.transpose(0, 1, 3, 2, 4)
    else:
      nibbles = jnp.stack([low, high], axis=-1).reshape(rows, length // 16, 4, 2, 4)
      runs = nibbles.transpose(0, 1, 4, 2, 3)
    weights = runs.reshape(rows, 2 * length)
  return weights[:outputs, :inputs].T


def column_sums(w_codes, w_scale, w_offset=None):
  """Sums over the inputs of the values of plain weights, float32 [..., N].

  Args:
    w_codes: int8 or int16 [..., K, N].
    w_scale: float32 [..., W, N] or [..., W, 1], W groups along K.
    w_offset: like the scale, or None for zero.
  """
  *batch, groups, _ = w_scale.shape
  *_, inputs, outputs = w_codes.shape
  sums = jnp.sum(w_codes.reshape(*batch, groups, inputs // groups, outputs), axis=-2, dtype=jnp.int32)
  values = sums.astype(jnp.float32) * w_scale
  if w_offset is not None:
    values += inputs // groups * w_offset
  return jnp.sum(values, axis=-2)


def fold_offset(bias, x_offset, sums):
  """The bias that stands for a static offset of the activation, float32 [..., N].

  An activation that is `x_scale * code + x_offset` with one offset for the whole tensor, such as a learned lower clip,
  adds the same x_offset * sum_k w[k, n] to every token.

  Args:
    bias: [..., N] or None.
    x_offset: float32 scalar.
    sums: float32 [..., N], see `column_sums`.
  """
  constant = x_offset * sums
  return constant if bias is None else bias.astype(jnp.float32) + constant
