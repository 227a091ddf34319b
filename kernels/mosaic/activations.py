"""The implementation `mosaic_gpu` of `kernels.quantize_activations`: a warpgroup holds a token in registers.

A token is read once, 16 bytes a thread at a time, and its codes are written once; nothing but partial results of
reductions, and vectors for which registers do not suffice, goes through shared memory, and as many blocks as the
registers allow keep the memory busy.
"""

import functools
import math

import jax
from jax import lax
import jax.numpy as jnp

from kernels import before as preceding
from kernels import static_ranges
from kernels.mosaic import calls
from kernels.mosaic import configs
from kernels.mosaic import token_blocks
from kernels.mosaic import token_codes

# What the registers of 128 threads hold of a token in float32, alone and beside what a norm or a transform needs.
MOST_FEATURES = 16_384
MOST_TRANSFORMED = 12_288


def quantize(x, **options):
  """(codes, scale, offset, row sums) of tokens; the arguments are checked already.

  Raises:
    NotImplementedError: not on this device, not for this shape or dtype, or under differentiation.
  """
  calls.check_device()
  return lowered(x, **options)


def lowered(x, *, bits: int, symmetric: bool, before, static, group_size: int, packed: bool, addend=None):
  """The same, for whatever device it is lowered."""
  features = preceding.features(before, x.shape[-1])
  if x.dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
    raise NotImplementedError(f'it takes bfloat16, float16 or float32, not {x.dtype}')
  most = MOST_FEATURES if before.norm is None and before.hadamard == 1 else MOST_TRANSFORMED
  if features % 256 or features > most or not x.size:
    raise NotImplementedError(f'it takes tokens of a multiple of 256 features up to {most}, not {x.shape}')
  if group_size != features and (group_size % 8 or 256 % group_size and group_size % 256):
    raise NotImplementedError(f'it sums groups that divide 256 features, or whole such runs, not of {group_size}')
  operands = {'x': x, 'addend': addend} | {name: getattr(before, name) for name in preceding.VECTORS}
  if static is not None:
    operands |= static_ranges.named(static)

  fixed = before._replace(**dict.fromkeys(preceding.VECTORS))
  call = functools.partial(
      _call, bits=bits, symmetric=symmetric, fixed=fixed, group_size=group_size, packed=packed)
  codes, row_sums, *rest = calls.guarded(call, operands, ('x', 'addend'))
  total = None if addend is None else rest.pop(0)
  scale, offset = (*rest, None, None)[:2]
  return codes, scale, offset, row_sums, total


# Traced and lowered once for all activations of a model that are alike, and not once a layer.
@functools.partial(jax.jit, static_argnames=('bits', 'symmetric', 'fixed', 'group_size', 'packed'))
def _call(operands: dict, *, bits, symmetric, fixed, group_size, packed):
  """Calls the kernel, whose blocks of threads have a token each or take them in turn.

  Args:
    operands: `x`, `addend`, the vectors of `before` and the ends of a static range, by name.
    bits, symmetric, group_size, packed: see `lowered`.
    fixed: what happens before, without its vectors.

  Returns:
    (codes, row sums, total, scale, offset) as far as there are.
  """
  from jax.experimental.pallas import mosaic_gpu as plgpu  # pylint: disable=g-import-not-at-top
  from kernels.mosaic import (  # pylint: disable=g-import-not-at-top
      tiles, token_arithmetic, token_loads, token_registers, token_transform)
  x, before = operands['x'], fixed._replace(**{name: operands[name] for name in preceding.VECTORS})
  static = static_ranges.StaticRange(*map(operands.get, static_ranges.NAMES)) if 'range_scale' in operands else None
  *batch, given = x.shape
  features, added = preceding.features(before, given), [] if operands['addend'] is None else [operands['addend']]
  tokens, groups = math.prod(batch), features // group_size
  places = token_registers.Places(features, *token_blocks.loads(features, group_size, before.hadamard))
  behind = places.behind(before.hadamard)
  names = [name for name in preceding.VECTORS if getattr(before, name) is not None]
  known = static_ranges.ends(static)
  dynamic = 0 if static is not None else 1 if symmetric else 2
  exchanged = places.exchanged(before.hadamard)
  means = {None: 0, 'rms': 1, 'layer': 2}[before.norm]
  # Of few tokens, all of memory's latency at once, where registers allow. Of many, vectors that are more bytes than the
  # tokens themselves are read once by few blocks, which take tokens in turn and read the next while one is quantized;
  # so are transforms, whose arithmetic then hides that latency. Else vectors are loaded when they are needed: registers
  # that wait for the mean of a norm would cost blocks in flight.
  at_once = tokens <= configs.CORES and features * (1 + len(names)) <= MOST_FEATURES
  rows, itemsize, blocks, in_registers = len(added) + (2 if before.gate else 1), x.dtype.itemsize, 0, 0
  if 4 * len(names) > (rows + len(added)) * itemsize + 1 or before.hadamard > 1:
    beside, in_registers = token_blocks.resident(features, rows, len(names), itemsize, before.hadamard, exchanged)
    blocks = configs.CORES * beside
  in_turn = 0 < 2 * blocks < tokens
  held = at_once or in_turn
  shared = len(names) - in_registers if in_turn else 0

  def kernel(x_gmem, *refs):
    addend_gmems, refs = refs[: len(added)], refs[len(added) :]
    vector_refs, refs = refs[: len(names)], refs[len(names) :]
    known_refs, (codes_gmem, sums_gmem, *refs) = refs[: len(known)], refs[len(known) :]
    total_gmems, refs = refs[: len(added)], refs[len(added) :]
    numbers_gmem, (extremes_smem, sums_smem, *refs) = refs[:dynamic], refs[dynamic:]
    means_smem, vectors_smem, scratch = refs[:means], refs[means : means + shared], refs[means + shared :]
    load = lambda ref: tiles.load(ref, places.layout(), optimized=False)
    narrow = lambda values, dtype: token_arithmetic.narrow(values, dtype, places)
    widen = lambda values: token_arithmetic.widened(values, places)
    combined = lambda arrays, kinds, scratch: token_arithmetic.combined(arrays, kinds, behind, scratch)

    def read(token):
      """The token's halves, and what is added to it."""
      if before.gate:
        return tuple(token_loads.half(x_gmem.at[token], places, index) for index in range(2))
      return load(x_gmem.at[token]), *(load(addend_gmem.at[token]) for addend_gmem in addend_gmems)

    first, ends = lax.axis_index('token'), [ref[0] for ref in known_refs]
    values, vectors = read(first), [functools.partial(load, ref) for ref in vector_refs]
    if held:  # of the scale the inverse, so that nothing is divided for each token; else it is made, for the same codes
      loaded = [1 / load(ref) if name == 'scale' else load(ref) for name, ref in zip(names, vector_refs)]
      vectors = [lambda vector=vector: vector for vector in loaded[: len(names) - shared]]
      for vector, ref in zip(loaded[len(vectors) :], vectors_smem):
        token_registers.keep(vector, places, ref)
        vectors.append(functools.partial(token_registers.kept, places, ref))

    def quantize(token, values):
      (values, *others), of_means = values, iter(means_smem)
      for addend, total_gmem in zip(others, total_gmems):
        values = narrow(widen(values) + widen(addend), x.dtype)
        total_gmem[token] = values
      if at_once and before.norm:  # behind whose mean they come
        values = token_loads.together(values, [*loaded, *ends], places, first)
      values = preceding.apply(
          (values, *others) if before.gate else values, before._replace(**dict(zip(names, vectors))),
          lambda values, block: token_transform.rotated(values, places, block, *scratch),
          lambda vector: vector(), narrow, widen,
          lambda values, power: token_arithmetic.total(values, power, places, next(of_means)) / features,
          lambda values: token_arithmetic.logistic(values, places.layout()),
          lambda values, scale: values * (scale if held else 1 / scale))
      wide = widen(values)  # a transform, which may move them, has done that
      if static is not None:
        codes, bias = token_codes.static(wide, bits, *ends)
        numbers = ()
      elif symmetric:
        top, = combined([values], ('magnitude',), extremes_smem)
        codes, bias, *numbers = token_codes.symmetric(wide, bits, top)
      else:
        codes, bias, *numbers = token_codes.affine(wide, bits, *combined([values] * 2, ('min', 'max'), extremes_smem))
      codes_gmem[token] = token_registers.pack(codes, behind) if packed else codes.astype(jnp.int8)
      for ref, number in zip(numbers_gmem, numbers):
        ref[token] = number
      # Sums wrap around, and so does what the bias adds to them.
      excess = jnp.int32((group_size * bias + 2**31) % 2**32 - 2**31)
      if groups == 1:
        sums_gmem[token] = combined([codes], ('sum',), sums_smem)[0] - excess
      else:
        sums_gmem[token] = jnp.sum(token_registers.grouped(codes, behind, group_size), axis=1) - excess

    if not in_turn:
      quantize(first, values)
      return

    def step(turn, values):
      token = first + turn * blocks
      following = read(lax.min(token + blocks, tokens - 1))
      if names:  # fewer blocks have registers; the cache reads further ahead for them
        later = lax.min(token + 2 * blocks, tokens - 1)
        for ref in (x_gmem, *addend_gmems):
          token_loads.fetch(ref.at[later])
      quantize(token, values)
      plgpu.commit_smem()  # all have read what the next token's numbers replace
      return following

    lax.fori_loop(0, lax.div(tokens - first + blocks - 1, blocks), step, values)

  of_tokens = lambda dtype, *shape: jax.ShapeDtypeStruct((tokens, *shape), dtype)
  results = plgpu.kernel(
      kernel,
      out_type=(of_tokens(jnp.int8, features // 2 if packed else features),
                of_tokens(jnp.int32, *(() if groups == 1 else (groups,))),
                *[of_tokens(x.dtype, features)] * len(added), *[of_tokens(jnp.float32)] * dynamic),
      scratch_types=[
          plgpu.SMEM((2, 4), jnp.int32), plgpu.SMEM((1, 4), jnp.int32), *[plgpu.SMEM((1, 4), jnp.float32)] * means,
          *[plgpu.SMEM((features,), jnp.float32)] * shared,
          *[plgpu.SMEM((features,), jnp.float32)] * exchanged],
      grid=(blocks if in_turn else tokens,), grid_names=('token',), compiler_params=tiles.PARAMS,
      kernel_name=f'quantize_{features}',
  )(*(a.reshape(tokens, given) for a in (x, *added)),
    *(getattr(before, name).astype(jnp.float32) for name in names),
    *known)
  return tuple(a.reshape(*batch, -1) for a in results)
