"""The compressed-tensors format: a scheme for each linear, with quantized activations where they are.

  weight_packed      int32 [out, in * bits / 32] (format `pack-quantized`), codes from 0
  weight             int8 [out, in] (format `int-quantized`), codes around 0
  weight_scale       float [out, groups]; or [1], one for the tensor
  weight_zero_point  asymmetric: int32 [out * bits / 32, groups], packed along the outputs; or int8 [out, groups]
  weight_shape       int64 [2]: out, in (`pack-quantized`)
  input_scale, input_zero_point     see static_inputs
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxquant import errors
from jaxquant.interop import matrices
from jaxquant.interop import static_inputs
from jaxquant.interop import words
from jaxquant.numerics import formats
from jaxquant.numerics import quantizers

_BITS = tuple(range(2, 9))
PACKED, INTEGER = 'pack-quantized', 'int-quantized'
_CLASS = 'Linear'
# What else a file may ask for; we know only files that do not.
_UNUSED = ('kv_cache_scheme', 'sparsity_config', 'transform_config', 'moe_sparsity_config')
# How inputs were ordered for calibration, where codes are stored in the order of the inputs all the same.
_ORDERS = (None, False, 'weight', 'static')

# How the inputs of a linear are quantized: with ranges of each token, with a static one, or not at all.
Activation = quantizers.DynamicQuantizer | static_inputs.StaticInput | None


class CompressedTensors:
  """The format.

  Attributes:
    groups: (patterns of linears' names, scheme, `Activation`) of each config group; a pattern is a regular expression
      behind `re:`, a name, or the class of all linears. A name counts more than an expression, and that more than the
      class, in whatever order the groups stand; of several expressions that match, the first by the alphabet.
    ignored: patterns of linears that stay floats.
    format: `PACKED` or `INTEGER`.
  """

  def __init__(self, groups, ignored=(), layout: str = PACKED):
    """The format with these groups, linears left in floats, and layout of the codes."""
    self.groups, self.ignored, self.format = tuple(groups), tuple(ignored), layout

  @classmethod
  def read(cls, config: Mapping[str, Any], where: str) -> 'CompressedTensors':
    """The format of a `quantization_config`; raises `UserError` for a value that we do not know."""
    layout = config.get('format')
    if layout not in (PACKED, INTEGER):
      raise errors.UserError(
          f'{where}: the format of compressed tensors is {layout!r}; there are {PACKED} and {INTEGER}')
    if config.get('quantization_status') != 'compressed':
      raise errors.UserError(f'{where}: quantization_status is {config.get("quantization_status")!r}, not compressed')
    sparse = config.get('sparsity_config')
    dense = ('sparsity_config',) if isinstance(sparse, dict) and sparse.get('format') == 'dense' else ()
    if asked := [key for key in _UNUSED if config.get(key) and key not in dense]:
      raise errors.UserError(f'{where}: {asked[0]} is not supported')
    groups = config.get('config_groups')
    if not isinstance(groups, dict) or not groups or not all(isinstance(group, dict) for group in groups.values()):
      raise errors.UserError(f'{where}: there are no config_groups')
    if wrong := [group['format'] for group in groups.values() if group.get('format', layout) != layout]:
      raise errors.UserError(f'{where}: a group of the format {wrong[0]!r} among those of {layout} is not supported')
    made = [(_patterns(group.get('targets'), where), _scheme(group.get('weights'), where), _activation(group, where))
            for group in groups.values()]
    return cls(made, _patterns(config.get('ignore') or [], where), layout)

  def config(self) -> dict[str, Any]:
    """The `quantization_config`."""
    return {
        'quant_method': 'compressed-tensors', 'format': self.format, 'quantization_status': 'compressed',
        'ignore': list(self.ignored), 'kv_cache_scheme': None, 'config_groups': {
            f'group_{i}': {'targets': list(targets), 'format': self.format, 'weights': _weights(scheme),
                           'input_activations': _inputs(activation), 'output_activations': None}
            for i, (targets, scheme, activation) in enumerate(self.groups)}}

  def scheme_of(self, module: str) -> matrices.Scheme | None:
    """The scheme of a linear; None for one in floats."""
    group = self._group(module)
    return group and group[1]

  def activation_of(self, module: str) -> Activation:
    """How what a linear reads is quantized."""
    group = self._group(module)
    return group and group[2]

  def shapes(self, module: str, inputs: int, outputs: int) -> dict[str, tuple[np.dtype | None, tuple[int, ...]]]:
    """Dtype (None for any float) and shape of every tensor of a linear, by the end of its name."""
    scheme = self.scheme_of(module)
    groups = scheme.groups(inputs)
    made = {'weight_scale': (None, (1,) if scheme.per_tensor else (outputs, groups))}
    if self.format == INTEGER:
      made['weight'] = np.dtype(np.int8), (outputs, inputs)
      zero_point = np.dtype(np.int8), (outputs, groups)
    else:
      made['weight_packed'] = np.dtype(np.int32), (outputs, words.count(inputs, scheme.bits))
      made['weight_shape'] = np.dtype(np.int64), (2,)
      zero_point = np.dtype(np.int32), (words.count(outputs, scheme.bits), groups)
    made |= {} if scheme.symmetric else {'weight_zero_point': zero_point}
    activation = self.activation_of(module)
    return made | activation.shapes() if isinstance(activation, static_inputs.StaticInput) else made

  def encode(self, matrix: matrices.Matrix, path: str) -> dict[str, np.ndarray]:
    """The tensors of a kernel."""
    del path
    bits, middle = matrix.scheme.bits, 2 ** (matrix.scheme.bits - 1)
    made = {'weight_scale': np.ascontiguousarray(matrix.scale.T)}
    if self.format == INTEGER:
      made['weight'] = (matrix.codes.T.astype(np.int16) - middle).astype(np.int8)
      zero_point = (matrix.zero_point.T - middle).astype(np.int8)
    else:
      made['weight_packed'] = words.pack(matrix.codes.T, bits)
      made['weight_shape'] = np.array(matrix.codes.shape[::-1], np.int64)
      zero_point = words.pack(matrix.zero_point, bits).T
    return made if matrix.scheme.symmetric else made | {'weight_zero_point': zero_point}

  def decode(self, tensors: Mapping[str, np.ndarray], module: str, inputs: int, where: str):
    """(the kernel, None: inputs are in their order); raises `UserError` if `weight_shape` says another one."""
    scheme = self.scheme_of(module)
    bits, middle = scheme.bits, 2 ** (scheme.bits - 1)
    scale = np.asarray(tensors['weight_scale'], np.float32).T
    if scheme.per_tensor:
      scale = np.tile(scale, (1, tensors['weight' if self.format == INTEGER else 'weight_packed'].shape[0]))
    if self.format == INTEGER:
      codes = (np.asarray(tensors['weight'], np.int16).T + middle)
      if codes.min(initial=0) < 0 or codes.max(initial=0) > 2 * middle - 1:
        raise errors.UserError(f'{where}: codes beyond {bits} bits')
      zero_point = None if scheme.symmetric else np.asarray(tensors['weight_zero_point'], np.int16).T + middle
    else:
      if (shape := np.asarray(tensors['weight_shape']).tolist()) != [scale.shape[1], inputs]:
        raise errors.UserError(f'{where}: weight_shape is {shape} instead of {[scale.shape[1], inputs]}')
      codes = words.unpack(tensors['weight_packed'], bits, inputs).T
      zero_point = None if scheme.symmetric else words.unpack(
          np.asarray(tensors['weight_zero_point']).T, bits, scale.shape[1]).astype(np.int16)
    zero_point = np.full(scale.shape, middle, np.int16) if zero_point is None else zero_point
    return matrices.Matrix(codes.astype(np.uint8), scale, zero_point, scheme), None

  def _group(self, module: str):
    if any(_matches(pattern, module) for pattern in self.ignored):
      return None
    found = {pattern: group for group in self.groups for pattern in group[0] if _matches(pattern, module)}
    first = min(found, key=lambda pattern: (pattern == _CLASS, pattern.startswith('re:'), pattern), default=None)
    return found.get(first)


def _matches(pattern: str, module: str) -> bool:
  """Whether a target of a config group, or what it ignores, means a linear."""
  if pattern.startswith('re:'):
    return re.match(pattern[3:], module) is not None
  return pattern in (module, _CLASS)


def _patterns(values: Any, where: str) -> tuple[str, ...]:
  if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
    raise errors.UserError(f'{where}: targets {values!r} are no list of names')
  for value in values:
    try:
      re.compile(value.removeprefix('re:'))
    except re.error as error:
      raise errors.UserError(f'{where}: {value!r} is not a regular expression ({error})') from None
  return tuple(values)


def _scheme(weights: Any, where: str) -> matrices.Scheme:
  """The scheme that the entry `weights` describes."""
  weights = weights if isinstance(weights, dict) else {}
  bits, strategy, size = weights.get('num_bits'), weights.get('strategy'), weights.get('group_size')
  symmetric = bool(weights.get('symmetric', True))
  known = (weights.get('type', 'int') == 'int' and type(bits) is int and bits in _BITS
           and weights.get('actorder') in _ORDERS and not weights.get('dynamic')
           and (strategy == 'channel' or strategy == 'tensor' and symmetric
                or strategy == 'group' and type(size) is int and size > 0))
  if not known:
    raise errors.UserError(f'{where}: weights {weights} are not supported: integers of 2 to 8 bits per group, channel, '
                           'or, symmetric, tensor, whose inputs are in their order, are')
  return matrices.Scheme(bits, symmetric, size if strategy == 'group' else None, strategy == 'tensor')


def _weights(scheme: matrices.Scheme) -> dict[str, Any]:
  return {'num_bits': scheme.bits, 'type': 'int', 'symmetric': scheme.symmetric, 'dynamic': False,
          'strategy': 'group' if scheme.group_size else 'tensor' if scheme.per_tensor else 'channel',
          'group_size': scheme.group_size}


def _activation(group: Mapping[str, Any], where: str) -> Activation:
  """What the entry `input_activations` describes."""
  if group.get('output_activations'):
    raise errors.UserError(f'{where}: output_activations are not supported')
  if not (inputs := group.get('input_activations')):
    return None
  known = (isinstance(inputs, dict) and inputs.get('type', 'int') == 'int'
           and type(inputs.get('num_bits')) is int and inputs['num_bits'] in _BITS
           and (inputs.get('dynamic', False), inputs.get('strategy')) in ((True, 'token'), (False, 'tensor')))
  if not known:
    raise errors.UserError(
        f'{where}: input_activations {inputs} are not supported: dynamic integers for each token, or static ones for '
        'each tensor, are')
  symmetric = bool(inputs.get('symmetric', True))
  if not inputs.get('dynamic'):
    return static_inputs.StaticInput(inputs['num_bits'], symmetric)
  return quantizers.DynamicQuantizer(formats.IntFormat(inputs['num_bits'], symmetric, full=symmetric))


def _inputs(activation: Activation) -> dict[str, Any] | None:
  if activation is None:
    return None
  if isinstance(activation, static_inputs.StaticInput):
    return {'num_bits': activation.bits, 'type': 'int', 'symmetric': activation.symmetric, 'strategy': 'tensor',
            'dynamic': False}
  return {'num_bits': activation.format.bits, 'type': 'int', 'symmetric': activation.format.symmetric,
          'strategy': 'token', 'dynamic': True}
