"""Directories that others quantized: which linears hold codes, in which tensors, and how their inputs are quantized."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.calibration import sites as sites_lib
from jaxquant.interop import awq
from jaxquant.interop import compressed_tensors
from jaxquant.interop import directory
from jaxquant.interop import gptq
from jaxquant.interop import matrices
from jaxquant.interop import names as names_lib
from jaxquant.interop import static_inputs
from jaxquant.numerics import formats
from jaxquant.numerics import qtensor
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees

_READERS = {
    'gptq': gptq.GPTQ.read, 'awq': awq.AWQ.read, 'compressed-tensors': compressed_tensors.CompressedTensors.read}


class Linear(NamedTuple):
  """A linear that holds codes.

  Attributes:
    module: its name in the files.
    layout: of its kernel within the module: a part of a fused one, inputs in front.
    shape: of its kernel, (in, out).
    scheme: of the codes.
  """

  module: str
  layout: names_lib.Layout
  shape: tuple[int, int]
  scheme: matrices.Scheme

  @property
  def outputs(self) -> int:
    """Outputs of the whole module."""
    return self.layout.shape(self.shape)[1]


class Quantized:
  """What is quantized in a directory.

  Attributes:
    method: name of the format.
    linears: {path in our tree: Linear}.
    activations: {path of a site: its quantizer, a `static_inputs.StaticInput` where the files hold the range}.
  """

  def __init__(
      self, config: Mapping[str, Any], names: names_lib.Names, abstract: dict, sites: Sequence[sites_lib.Site],
      where: str):
    """Reads a `quantization_config`.

    Args:
      config: its values.
      names: of the model's tensors.
      abstract: the model's float tree as shapes.
      sites: of the whole model.
      where: the file, for messages.

    Raises:
      UserError: a format, or an option of it, that we do not know; or groups that do not divide a kernel.
    """
    self.method = config.get('quant_method')
    if not isinstance(self.method, str) or self.method not in _READERS:
      raise errors.UserError(f'{where}: quant_method is {self.method!r}; there are {", ".join(_READERS)}')
    self._codec = _READERS[self.method](config, where)
    everywhere = isinstance(self._codec, compressed_tensors.CompressedTensors)
    self.linears: dict[str, Linear] = {}
    for path in trees.linears(abstract):
      if path in trees.TABLES or not (everywhere or path.startswith('layers/')):
        continue
      module, shape = names.module(path), trees.get(abstract, path)['kernel'].shape
      if (scheme := self._codec.scheme_of(module)) is None:
        continue
      if scheme.group_size and shape[0] % scheme.group_size:
        raise errors.UserError(
            f'{where}: groups of {scheme.group_size} do not divide the {shape[0]} inputs of {module}')
      layout = names.layout(f'{path}/kernel')._replace(transposed=False)
      self.linears[path] = Linear(module, layout, shape, scheme)
    self._readers: dict[str, list[str]] = {}
    self.activations = self._quantizers(sites, where) if everywhere else {}

  def tensors(self) -> dict[str, tuple[np.dtype | None, tuple[int, ...]]]:
    """Dtype (None for any float) and shape of every tensor that holds codes, or what belongs to them, by name."""
    return {f'{linear.module}.{suffix}': described for linear in self.linears.values()
            for suffix, described in self._codec.shapes(linear.module, linear.shape[0], linear.outputs).items()}

  def tensor(self, path: str) -> str:
    """The name of one of the tensors of the linear at `path`."""
    linear = self.linears[path]
    return f'{linear.module}.{next(iter(self._codec.shapes(linear.module, *linear.shape)))}'

  def abstract(self, tree: dict) -> dict:
    """The float tree, as shapes, with what is quantized in its place."""
    struct = jax.ShapeDtypeStruct
    for path, (_, _, (inputs, outputs), scheme) in self.linears.items():
      fmt = formats.IntFormat(scheme.bits, scheme.symmetric, full=scheme.symmetric)
      rows, groups = -(-inputs * fmt.storage_bits // 8), scheme.groups(inputs)
      tree = trees.put(tree, f'{path}/kernel', qtensor.QTensor(
          struct((rows, outputs), jnp.uint8), struct((groups, outputs), jnp.float32),
          None if scheme.symmetric else struct((groups, outputs), jnp.uint8), fmt, -2, inputs))
      if self._gathers:
        tree = trees.put(tree, f'{path}/input/gather', struct((inputs,), jnp.int32))
    for name, quantizer in self.activations.items():
      abstract = quantizer.abstract() if isinstance(quantizer, static_inputs.StaticInput) else quantizer
      tree = trees.put(tree, f'{name}/quantizer', abstract)
    return tree

  def inputs(self, inside: Callable[[str], bool], folder: directory.Directory) -> dict[str, Any]:
    """{path of a site: its quantizer, of NumPy arrays} of the sites that are `inside`.

    Raises:
      UserError: linears that share a site have different ranges there, or a range is none.
    """
    return {name: self._static(name, folder) if isinstance(quantizer, static_inputs.StaticInput) else quantizer
            for name, quantizer in self.activations.items() if inside(name)}

  def _static(self, name: str, folder: directory.Directory) -> Any:
    """The static quantizer of a site, from the tensors of every linear that reads there."""
    activation, found = self.activations[name], {}
    for path in self._readers[name]:
      module = self.linears[path].module
      found[path] = {suffix: np.asarray(folder.array(f'{module}.{suffix}')) for suffix in activation.shapes()}
    first, *others = found.values()
    if any(not np.array_equal(other[suffix], first[suffix], equal_nan=True) for other in others for suffix in first):
      raise errors.UserError(f'{folder.path}: {" and ".join(found)} read the same, and quantize it differently')
    return activation.decode(first, f'{folder.path}: {self.linears[self._readers[name][0]].module}')

  def layer(self, path: str, folder: directory.Directory) -> dict[str, Any]:
    """What the linear at `path` holds but for its bias, in NumPy arrays: {entry: value}; raises `UserError`."""
    linear = self.linears[path]
    names = {suffix: f'{linear.module}.{suffix}' for suffix in self._codec.shapes(linear.module, *linear.shape)}
    where = f'{folder.path}: {linear.module}'
    matrix, gather = self._codec.decode(
        {suffix: folder.array(name) for suffix, name in names.items()}, linear.module, linear.shape[0], where)
    take = linear.layout.take
    arrays = (matrix.codes, matrix.scale, matrix.zero_point)
    part = matrices.Matrix(*(np.ascontiguousarray(take(array)) for array in arrays), matrix.scheme)
    if not np.isfinite(part.scale).all():
      raise errors.UserError(f'{where}: a scale is not finite')
    made = {'kernel': matrices.to_qtensor(part)}
    return made | {'input': {'gather': gather}} if self._gathers else made

  @property
  def _gathers(self) -> bool:
    return isinstance(self._codec, gptq.GPTQ) and self._codec.in_any_order

  def _quantizers(self, sites, where) -> dict[str, quantizers.DynamicQuantizer | static_inputs.StaticInput]:
    """How every site is quantized; linears that share one must ask for the same."""
    found, seen = {}, set()
    for site in sites:
      asked = {path: self._codec.activation_of(self.linears[path].module) if path in self.linears else None
               for path in site.consumers}
      seen |= set(asked)
      if len(set(asked.values())) > 1:
        raise errors.UserError(f'{where}: {" and ".join(asked)} read the same, and quantize it differently')
      if (quantizer := next(iter(asked.values()))) is not None:
        found[site.name], self._readers[site.name] = quantizer, list(asked)
    for path, linear in self.linears.items():
      if path not in seen and (quantizer := self._codec.activation_of(linear.module)) is not None:
        found[f'{path}/input'], self._readers[f'{path}/input'] = quantizer, [path]
    return found
