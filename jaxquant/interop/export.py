"""A tree as the tensors of a format of others, or the reason why it cannot be that."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from jaxquant import errors
from jaxquant.interop import awq
from jaxquant.interop import compressed_tensors
from jaxquant.interop import configs
from jaxquant.interop import families
from jaxquant.interop import gptq
from jaxquant.interop import matrices
from jaxquant.interop import names as names_lib
from jaxquant.interop import static_inputs
from jaxquant.models import staging
from jaxquant.numerics import nodes
from jaxquant.numerics import qtensor
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees

CODED = ('compressed-tensors', 'gptq', 'gptq_v2', 'awq')
FLOAT = 'float'  # what is not quantized
FORMATS = (*CODED, FLOAT)
_DTYPES = {'float32': np.float32, 'float16': np.float16, 'bfloat16': ml_dtypes.bfloat16}
_ENTRIES = {
    'gather': 'a reordering of channels', 'shift': 'a shift of channels', 'scale': 'a scale of channels',
    'hadamard': 'a transform of channels', 'clip': 'a clip of activations'}


class Export:
  """A tree in a format.

  Attributes:
    codec: of the format; None for `FLOAT`.
    dtype: name of the dtype of what stays floating.
  """

  def __init__(self, params: dict, origin: Mapping[str, Any], kind: str, dtype: str | None = None):
    """Checks that the format can express the tree.

    Args:
      params: of a model that `origin` describes, quantized but for `FLOAT`.
      origin: the `config.json` of the model before it was quantized.
      kind: one of `FORMATS`.
      dtype: of what stays floating; that of `origin` by default.

    Raises:
      UserError: naming what the format cannot express, or an unknown format or dtype.
    """
    if kind not in FORMATS:
      raise errors.UserError(f'the format is {kind!r}; there are {", ".join(FORMATS)}')
    self._origin, self._params = dict(origin), params
    config = configs.read(origin)
    if not config.head:
      raise errors.UserError('an encoder without a head has a pooler in files of others, which our tree has not')
    self.dtype = dtype or config.dtype
    if self.dtype not in _DTYPES:
      raise errors.UserError(f'the dtype is {self.dtype!r}; there are {", ".join(_DTYPES)}')
    self._family = families.find(origin)
    self._names = names_lib.Names(self._family, config)
    self._sites = staging.model_sites(config)
    if not self._family.transposed and kind in ('compressed-tensors', 'awq'):
      raise errors.UserError(f'{kind} knows linears of torch alone, and those of a {origin["model_type"]} are Conv1D')
    self._check()
    self._static: dict[str, tuple[str, Any]] = {}
    self.codec = self._codec(kind)
    # Of linears with static activations; only compressed tensors have them.
    self._ranges = {
        module: self.codec.activation_of(module).encode(quantizer, name)
        for module, (name, quantizer) in self._static.items()}

  def config(self) -> dict[str, Any]:
    """The `config.json`."""
    key = 'torch_dtype' if 'torch_dtype' in self._origin else 'dtype'
    floats = {name: value for name, value in self._origin.items() if name != 'quantization_config'} | {key: self.dtype}
    return floats if self.codec is None else {**floats, 'quantization_config': self.codec.config()}

  def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor by name, made when it is asked for."""
    arrays = {path: value for path, value in trees.walk(self._params) if path in self._names.entries}
    groups: dict[str, list[str]] = {}
    for path, entry in self._names.entries.items():
      groups.setdefault(entry.tensor, []).append(path)
    for tensor, paths in groups.items():
      paths.sort(key=lambda path: self._names.entries[path].layout.part)
      layout = self._names.entries[paths[0]].layout
      if isinstance(arrays[paths[0]], qtensor.QTensor):
        module = tensor.removesuffix('.weight')
        made = self.codec.encode(self._joined(paths, layout), module) | self._ranges.get(module, {})
        for suffix, array in made.items():
          yield f'{module}.{suffix}', array
      else:
        yield tensor, self._cast(layout.give(*(np.asarray(arrays[path]) for path in paths)), tensor)

  def _cast(self, array: np.ndarray, name: str) -> np.ndarray:
    """A tensor that stays floating, in its dtype; raises `UserError` if a value leaves that."""
    with np.errstate(over='ignore'):
      made = array.astype(_DTYPES[self.dtype])
    if self.dtype != 'float32' and (lost := np.isinf(made) & np.isfinite(array)).any():
      raise errors.UserError(f'{name} holds {array[lost][0]:.3g}, which leaves {self.dtype}')
    return made

  def _joined(self, paths: list[str], layout: names_lib.Layout) -> matrices.Matrix:
    """The kernel of a tensor, of the three parts of a fused one; inputs stay in front."""
    parts = [matrices.from_qtensor(trees.get(self._params, path), path) for path in paths]
    join = functools.partial(layout._replace(transposed=False).give)
    joined = (join(*(getattr(part, name) for part in parts)) for name in ('codes', 'scale', 'zero_point'))
    return matrices.Matrix(*joined, parts[0].scheme)

  def _check(self) -> None:
    """Raises `UserError` for whatever has no place in files of others."""
    specified = {site.name for site in self._sites} | {f'{path}/input' for path in trees.linears(self._params)}
    for path, value in trees.walk(self._params):
      parent, _, key = path.rpartition('/')
      if value is None or isinstance(value, dict):
        continue
      problem = None
      if path in self._names.entries:
        if isinstance(value, qtensor.QTensor) and parent in trees.TABLES:
          problem = 'formats of others keep tables of embeddings in floats'
      elif parent in specified and isinstance(value, quantizers.INPUT_QUANTIZERS):
        pass  # `_activation` looks at it
      elif parent in specified and key in _ENTRIES:
        problem = f'{_ENTRIES[key]}, which has no place in files of others'
      elif key == 'bias':
        problem = 'a bias where the architecture has none'
      elif parent.endswith('_residual'):
        problem = 'what undoes a fold for a residual branch, which has no place in files of others'
      elif nodes.is_node(value):
        problem = f'a {type(value).__name__}, which has no place in files of others'
      else:
        problem = 'the architecture has no place for it'
      if problem:
        raise errors.UserError(f'{path}: {problem}')

  def _codec(self, kind: str):
    """The codec of the format for the schemes of the tree."""
    found: dict[str, tuple[matrices.Scheme | None, compressed_tensors.Activation]] = {}
    inputs: dict[str, int] = {}
    for path in trees.linears(self._params):
      if path in trees.TABLES:
        continue
      kernel = trees.get(self._params, path)['kernel']
      module = self._names.module(path)
      scheme = matrices.scheme(kernel, path) if isinstance(kernel, qtensor.QTensor) else None
      activation = self._activation(path, module)
      if kind == FLOAT and (scheme or activation):
        what = 'its kernel holds codes' if scheme else 'its activations are quantized'
        raise errors.UserError(f'{path}: {what}, and {kind} is what is not quantized')
      if scheme is None and activation is not None:
        raise errors.UserError(f'{path}: quantized activations meet a float kernel, which no format of others knows')
      if found.setdefault(module, (scheme, activation)) != (scheme, activation):
        raise errors.UserError(f'{path}: {module} is one tensor, all of which takes the same format')
      inputs[module] = kernel.shape[0]
    if kind == FLOAT:
      return None
    sizes = {scheme.group_size for scheme, _ in found.values() if scheme} - {None}
    for module, (scheme, activation) in found.items():
      if scheme and sizes == {inputs[module]}:  # one group, which is what its channels are
        found[module] = dataclasses.replace(scheme, group_size=inputs[module]), activation
    floats = [module for module, (scheme, _) in found.items() if scheme is None]
    floats += [name for name in self._family.heads if name not in found]
    schemes = {pair for pair in found.values() if pair[0] is not None}
    if not schemes:
      raise errors.UserError(f'the model holds no integer codes to export; {FLOAT} is the format without them')
    if kind == 'compressed-tensors':
      return _compressed(found, schemes, floats)
    inside = [(path, found[self._names.module(path)]) for path in trees.linears(self._params)
              if path.startswith('layers/')]
    if wrong := [path for path, pair in inside if pair[1] is not None]:
      raise errors.UserError(f'{wrong[0]}: its activations are quantized, and {kind} is a format of weights alone')
    if len(schemes) > 1:
      several = ' and '.join(sorted(str(scheme) for scheme, _ in schemes))
      raise errors.UserError(f'{kind} has one scheme for all linears, not {several}')
    (scheme, _), = schemes
    if wrong := [path for path, pair in inside if pair[0] is None]:
      raise errors.UserError(f'{wrong[0]}: {kind} quantizes all linears of the blocks, and this one is left in floats')
    if wrong := [module for module, pair in found.items() if pair[0] and module not in map(
        self._names.module, (path for path, _ in inside))]:
      raise errors.UserError(f'{wrong[0]}: {kind} quantizes the linears of the blocks alone')
    if kind == 'awq':
      # The head is the one linear outside of the blocks that loaders would replace.
      return awq.AWQ(matrices.Scheme(scheme.bits, False, scheme.group_size), tuple(floats))
    return gptq.GPTQ(scheme, kind)

  def _activation(self, path: str, module: str) -> compressed_tensors.Activation:
    """How what the linear at `path` reads is quantized; raises `UserError` where formats of others lack that."""
    shared = [site.name for site in self._sites if path in site.consumers]
    found = [(name, value) for name in dict.fromkeys([*shared, f'{path}/input'])
             if (value := trees.get(self._params, f'{name}/quantizer')) is not None]
    if not found:
      return None
    name, quantizer = found[0]
    if not isinstance(quantizer, quantizers.DynamicQuantizer):
      self._static[module] = name, quantizer
      return static_inputs.StaticInput.of(quantizer, name)
    if quantizer.group_size is not None or quantizer.per_tensor:
      raise errors.UserError(f'{name}: other formats take dynamic ranges of whole tokens, not of groups or tensors')
    if quantizer.format.symmetric and not quantizer.format.full:
      raise errors.UserError(f'{name}: other formats scale symmetric activations to the full range of codes; '
                             f'full_{quantizer.format.name} does too')
    return quantizer


def _compressed(found, schemes, floats) -> compressed_tensors.CompressedTensors:
  """The codec of compressed tensors: one group for all linears, or, where they differ, groups of names."""
  bits = lambda activation: getattr(activation, 'format', activation).bits
  eight = all(scheme.bits == 8 and activation and bits(activation) == 8 for scheme, activation in schemes)
  layout = compressed_tensors.INTEGER if eight else compressed_tensors.PACKED
  if len(schemes) == 1:
    return compressed_tensors.CompressedTensors([(('Linear',), *next(iter(schemes)))], floats, layout)
  groups: dict[Any, list[str]] = {}
  for module, pair in found.items():
    if pair[0] is not None:
      groups.setdefault(pair, []).append(module)
  return compressed_tensors.CompressedTensors(
      [(tuple(modules), *pair) for pair, modules in groups.items()], floats, layout)
