"""Codes in 32-bit words, as the formats of others pack them: code i at bit i * bits, the least significant first."""

import numpy as np


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
  """Packs codes along the last axis, densely, across the words' ends where `bits` does not divide 32.

  Args:
    codes: integers from 0 to 2^bits - 1, [..., n].
    bits: of a code.

  Returns:
    int32 [..., ceil(n * bits / 32)]; what is left of the last word is zero.
  """
  if 32 % bits:
    every = (codes[..., None].astype(np.uint8) >> np.arange(bits, dtype=np.uint8)) & 1
    return _words(every.reshape(*codes.shape[:-1], -1))
  count = 32 // bits
  codes = _filled(codes.astype(np.uint32), count).reshape(*codes.shape[:-1], -1, count)
  words = np.zeros(codes.shape[:-1], np.uint32)
  for i in range(count):
    words |= codes[..., i] << np.uint32(bits * i)
  return words.view(np.int32)


def unpack(words: np.ndarray, bits: int, count: int) -> np.ndarray:
  """The first `count` codes of words int32 [..., words]: uint8 [..., count]; the inverse of `pack`."""
  words = np.ascontiguousarray(words).view(np.uint32)
  if 32 % bits:
    every = np.unpackbits(words.astype('<u4').view(np.uint8), axis=-1, bitorder='little')[..., : count * bits]
    every = every.reshape(*words.shape[:-1], count, bits)
    return (every << np.arange(bits, dtype=np.uint8)).sum(axis=-1, dtype=np.uint8)
  codes = np.empty((*words.shape, 32 // bits), np.uint8)
  for i in range(32 // bits):
    codes[..., i] = (words >> np.uint32(bits * i)) & np.uint32(2**bits - 1)
  return codes.reshape(*words.shape[:-1], -1)[..., :count]


def count(values: int, bits: int) -> int:
  """Words that `values` codes take."""
  return -(-values * bits // 32)


def _filled(codes: np.ndarray, multiple: int) -> np.ndarray:
  """With zeros at the end, so that the last axis is a multiple."""
  return np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % multiple)])


def _words(every: np.ndarray) -> np.ndarray:
  packed = np.packbits(_filled(every, 32), axis=-1, bitorder='little')
  return np.ascontiguousarray(packed).view('<u4').astype(np.uint32).view(np.int32)
