"""Quantization-aware training: puts quantizers into a float tree, by rules, and keeps their ranges sane."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxquant import errors
from jaxquant.calibration import rules
from jaxquant.numerics import formats
from jaxquant.numerics import nodes
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees

METHODS = ('clip', 'lsq', 'pact')


@dataclasses.dataclass(frozen=True)
class QATConfig:
  """What is quantized during training.

  Attributes:
    bits: of activations.
    method: `clip` (two learned ends, arXiv:2404.03605), `lsq` or `pact`.
    align_zero: see `quantizers.ClipQuantizer`.
    ranges: (pattern, half width) pairs; the first pattern that matches the whole name of a site gives the half width of
      its starting range. Sites without a match stay unquantized. The scale that counts is that of the trained
      activation, not of the first one: inputs of `o` and `down` grow tenfold early on, and nothing pulls the network
      back out of a range that it has outgrown (docs/results.md has the measurements).
    weight_bits: round kernels too, symmetric per output channel, with straight-through gradients; 16 leaves them.
    weight_start: training step, from 1, at which that rounding begins; the network before it learns with float kernels.
    weight_pattern: which linears' kernels, a regular expression on their whole path.
    weight_group_size: inputs that share a weight scale; None for all.
  """

  bits: int = 4
  method: str = 'clip'
  align_zero: bool = False
  ranges: tuple = ((r'layers/\d+/attention/o/input', 2.0), (r'layers/.*', 3.0))
  weight_bits: int = 16
  weight_start: int = 1
  weight_pattern: str = r'layers/.*'
  weight_group_size: int | None = None

  def __post_init__(self):
    if self.method not in METHODS:
      raise errors.UserError(f'qat.method is {self.method!r}; there are {", ".join(METHODS)}')
    if not 2 <= self.bits <= 8:
      raise errors.UserError(f'qat.bits must be 2 to 8, not {self.bits}')
    if any(width <= 0 for _, width in self.ranges):
      raise errors.UserError('qat.ranges: half widths must be positive')


def prepare(
    params: dict, config: QATConfig, site_names: tuple[str, ...], start: dict[str, tuple] | None = None
) -> dict:
  """A float tree with the quantizers of `config`.

  Args:
    params: float tree.
    config: what to quantize.
    site_names: names of the model's sites, which are the paths of their input specifications.
    start: (low, high) to start from, by site; by default the widths of `config.ranges` as they are.

  Returns:
    The tree with `quantizer` entries in input specifications and `kernel_quantizer` entries in linears.

  Raises:
    UserError: a pattern that wins no site or linear, a group size that does not divide, or a tree that holds codes.
  """
  if coded := [path for path in trees.linears(params) if nodes.is_node(trees.get(params, path)['kernel'])]:
    raise errors.UserError(f'training needs float weights, but {coded[0]} holds integer codes')
  for name, width in rules.assign(config.ranges, site_names, 'qat.ranges', every=False).items():
    low, high = (start or {}).get(name, (-width, width))
    specification = {**trees.get(params, name, {}), 'quantizer': _quantizer(config, low, high).projected()}
    params = trees.put(params, name, specification)
  if config.weight_bits < 16:
    quantizer = quantizers.WeightQuantizer(
        formats.IntFormat(config.weight_bits), group_size=config.weight_group_size)
    paths = trees.matching(config.weight_pattern, trees.linears(params))
    if not paths:
      raise errors.UserError(f'qat.weight_pattern {config.weight_pattern!r} matches no linear layer')
    for path in paths:
      quantizer.check(trees.get(params, path)['kernel'].shape, path)
      params = trees.put(params, f'{path}/kernel_quantizer', quantizer)
  return params


def rounded_if(condition, params: dict) -> dict:
  """The tree with kernels as their quantizers round them where `condition`, a traced bool, holds, else as they are."""
  for path in trees.linears(params):
    if quantizer := trees.get(params, path).get('kernel_quantizer'):
      kernel = trees.get(params, path)['kernel']
      params = trees.put(params, f'{path}/kernel', jnp.where(condition, quantizer(kernel), kernel))
  return trees.without(params, 'kernel_quantizer')


def project(params: dict) -> dict:
  """The tree with every learned range valid again (ends in order, steps positive), after an optimizer step."""
  learned = lambda value: isinstance(value, quantizers.INPUT_QUANTIZERS)
  return jax.tree.map(lambda value: value.projected() if learned(value) else value, params, is_leaf=learned)


def ranges(params: dict) -> dict[str, tuple]:
  """The learned range (low, high) of every input quantizer, by the path of its specification."""
  found = {path: trees.get(params, path)['quantizer'] for path in trees.inputs(params)}
  return {path: quantizer.ends() for path, quantizer in found.items() if hasattr(quantizer, 'ends')}


def _quantizer(config: QATConfig, low, high):
  low, high = jnp.float32(low), jnp.float32(high)
  width = jnp.maximum(-low, high)
  if config.method == 'clip':
    return quantizers.ClipQuantizer(low, high, config.bits, config.align_zero)
  if config.method == 'pact':
    return quantizers.PactQuantizer(width, config.bits)
  return quantizers.StepQuantizer(width / (2 ** (config.bits - 1) - 1), config.bits)
