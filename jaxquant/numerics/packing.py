"""Codes in bytes: element i of a byte's k codes sits at bit i * (8 / k), so the first of two nibbles is the low one."""

import jax.numpy as jnp

from jaxquant.numerics import formats


def pack(codes, fmt: formats.Format, axis: int):
  """Packs codes along `axis`.

  Args:
    codes: int8 or uint8 array, any shape, values of `fmt`.
    fmt: the number format; its `storage_bits` decides how many codes share a byte.
    axis: the axis that shrinks; an odd tail is padded with zero codes.

  Returns:
    uint8 array, `axis` shrunk to ceil(size * storage_bits / 8).
  """
  bits = fmt.storage_bits
  per_byte = 8 // bits
  codes = jnp.moveaxis(codes, axis, -1).astype(jnp.uint8) & (2**bits - 1)
  padding = [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % per_byte)]
  codes = jnp.pad(codes, padding).reshape(*codes.shape[:-1], -1, per_byte)
  packed = codes[..., 0]
  for i in range(1, per_byte):
    packed = packed | (codes[..., i] << (i * bits))
  return jnp.moveaxis(packed, -1, axis)


def unpack(packed, fmt: formats.Format, axis: int, size: int):
  """The inverse of `pack`: int8 (symmetric) or uint8 codes with `size` elements along `axis`."""
  bits = fmt.storage_bits
  packed = jnp.moveaxis(packed, axis, -1)
  parts = [(packed >> (i * bits)) & (2**bits - 1) for i in range(8 // bits)]
  codes = jnp.stack(parts, -1).reshape(*packed.shape[:-1], -1)[..., :size]
  if fmt.symmetric:
    shift = 8 - bits
    codes = (codes << shift).view(jnp.int8) >> shift  # an arithmetic shift extends the sign
  return jnp.moveaxis(codes, -1, axis)
