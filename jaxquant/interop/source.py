"""A model directory as a tree: whole, or block by block, so that it never has to be in memory as a whole."""

import dataclasses
import os
from collections.abc import Callable
from concurrent import futures
from typing import Any

import jax
import numpy as np

from jaxquant import errors
from jaxquant.interop import configs
from jaxquant.interop import directory
from jaxquant.interop import families
from jaxquant.interop import names
from jaxquant.models import validate
from jaxquant.numerics import trees

# Arrays read at a time: enough to keep a disk and two cores busy, few enough to need little memory.
_READERS = 4
# Edge of the squares in which a kernel is transposed, which fit a processor's cache.
_SQUARE = 256
_MASKS = ('[MASK]', '<mask>')


class DirectorySource:
  """The source (`calibration.stores.Source`) that is a Hugging Face directory.

  Attributes:
    directory: the directory.
    config: the architecture.
    names: of the tensors.
  """

  def __init__(self, path: str | os.PathLike[str], shardings: Callable[[tuple[int, ...]], Any] | None = None):
    """Checks the directory's configuration, and names, dtypes and shapes of all its tensors; reads none.

    Args:
      path: the directory.
      shardings: shape of an array -> the sharding that it is loaded to; by default one device holds all.

    Raises:
      UserError: whatever is wrong with it.
    """
    self.directory = directory.Directory(path)
    if method := (self.directory.config.get('quantization_config') or {}).get('quant_method'):
      raise errors.UserError(f'{path} is quantized already, by the method {method}')
    config = configs.read(self.directory.config, str(self.directory.path / directory.CONFIG))
    self.config = dataclasses.replace(config, mask_token=_mask_token(self.directory, config))
    self.names = names.Names(families.find(self.directory.config), self.config, self.directory.files)
    self._shardings = shardings or (lambda shape: jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    self._abstract = validate.abstract_params(self.config)
    self._check()

  def abstract(self) -> dict:
    """The whole tree as shapes."""
    return self._abstract

  def load(self, path: str) -> dict:
    """The subtree of the block at `path`; for '' the tree without all blocks. Kernels are float32."""
    inside = lambda name: name.startswith(f'{path}/') if path else not name.startswith('layers/')
    tree = {}
    with futures.ThreadPoolExecutor(_READERS) as pool:
      wanted = [name for name in self.names.entries if inside(name)]
      for name, array in zip(wanted, pool.map(self._array, wanted)):
        tree = trees.put(tree, name[len(path) + 1:] if path else name, array)
    return tree

  def assemble(self, finished: dict[str, dict]) -> dict:
    """The whole tree, of finished blocks and of those that the directory still holds as they are."""
    tree = finished[''] if '' in finished else self.load('')
    for i in range(self.config.layers):
      path = f'layers/{i}'
      tree = trees.put(tree, path, finished[path] if path in finished else self.load(path))
    return tree

  def whole(self) -> dict:
    """The whole tree."""
    return self.assemble({})

  def _check(self):
    where = self.directory.path
    self.names.check_complete(where)
    for path, leaf in trees.arrays(self._abstract).items():
      entry = self.names.entries[path]
      tensor = self.directory.tensor(entry.tensor)
      if not np.issubdtype(tensor.dtype, np.floating) and tensor.dtype.name != 'bfloat16':
        raise errors.UserError(f'{where}: {entry.tensor} is {tensor.dtype.name}, not of a floating dtype')
      if tensor.shape != (expected := entry.layout.shape(leaf.shape)):
        raise errors.UserError(f'{where}: {entry.tensor} has shape {tensor.shape} instead of {expected}')

  def _array(self, path: str) -> jax.Array:
    entry = self.names.entries[path]
    view = entry.layout.take(self.directory.array(entry.tensor))
    return jax.make_array_from_callback(view.shape, self._shardings(view.shape), lambda index: float32(view[index]))


def _mask_token(folder: directory.Directory, config):
  """The token that hides others from an encoder, by its name in the tokenizer, if it has one."""
  if config.causal or not folder.has('tokenizer.json'):
    return config.mask_token
  added = folder.json('tokenizer.json').get('added_tokens') or ()
  return next((token['id'] for token in added if token.get('content') in _MASKS), config.mask_token)


def float32(view: np.ndarray) -> np.ndarray:
  """A copy in float32; that of a transposed one is made square by square."""
  if view.ndim != 2 or view.flags.c_contiguous or min(view.shape) <= _SQUARE:
    return np.array(view, np.float32, order='C')
  copy = np.empty(view.shape, np.float32)
  for i in range(0, view.shape[0], _SQUARE):
    for j in range(0, view.shape[1], _SQUARE):
      square = np.s_[i : i + _SQUARE, j : j + _SQUARE]
      copy[square] = view[square]
  return copy
