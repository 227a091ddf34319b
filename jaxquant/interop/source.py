"""A model directory as a tree: whole, or block by block, so that it never has to be in memory as a whole."""

import dataclasses
import os
import pathlib
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
from jaxquant.interop import quantized
from jaxquant.interop import slabs
from jaxquant.models import staging
from jaxquant.models import validate
from jaxquant.numerics import trees

# Arrays read at a time: enough to keep a disk and a few cores busy, few enough that the disk sees few places at once.
READERS = 4
# Rows of an array that are compared at a time.
_ROWS = 1024
_TOKENIZER, _MASKS = 'tokenizer.json', ('[MASK]', '<mask>')


class DirectorySource:
  """The source (`calibration.stores.Source`) that is a Hugging Face directory, float or quantized.

  Attributes:
    directory: the directory.
    config: the architecture.
    masks: whether the tokenizer names the token that hides others from an encoder; `config.mask_token` is the last one
      otherwise, which need not be what the model was trained with.
    names: of the float tensors.
    quantized: what is quantized, or None.
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
    where = str(self.directory.path / directory.CONFIG)
    config = configs.read(self.directory.config, where)
    mask = None if config.causal else _mask_token(self.directory, config.vocabulary)
    self.config, self.masks = dataclasses.replace(config, mask_token=mask), mask is not None
    self.names = names.Names(families.find(self.directory.config), self.config, self.directory.files)
    self._shardings = shardings or (lambda shape: jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    self._abstract, self.quantized = validate.abstract_params(self.config), None
    self._floats = dict(self.names.entries)
    if (asked := self.directory.config.get('quantization_config')) is not None:
      if not isinstance(asked, dict):
        raise errors.UserError(f'{where}: quantization_config is {asked!r}')
      self.quantized = quantized.Quantized(
          asked, self.names, self._abstract, staging.model_sites(self.config), where)
      for linear in self.quantized.linears:
        del self._floats[f'{linear}/kernel']
    self._check()
    if self.quantized:
      self._abstract = self.quantized.abstract(self._abstract)

  def abstract(self) -> dict:
    """The whole tree as shapes."""
    return self._abstract

  def load(self, path: str) -> dict:
    """The subtree of the block at `path`; for '' the tree without all blocks. What floats is float32."""
    inside = lambda name: name.startswith(f'{path}/') if path else not name.startswith('layers/')
    work = {name: self._array for name in self._floats if inside(name)}
    work |= {name: self._layer for name in (self.quantized.linears if self.quantized else ()) if inside(name)}
    tree = {}
    with futures.ThreadPoolExecutor(READERS) as pool:
      under_way = {name: pool.submit(work[name], name) for name in sorted(work, key=self._place)}
      for name in work:
        made, name = under_way.pop(name).result(), name[len(path) + 1:] if path else name
        for key, value in made.items() if isinstance(made, dict) else [('', made)]:
          tree = trees.put(tree, f'{name}/{key}'.rstrip('/'), value)
    found = self.quantized.inputs(inside, self.directory) if self.quantized else {}
    for name, quantizer in found.items():
      name = name[len(path) + 1:] if path else name
      tree = trees.put(tree, f'{name}/quantizer', jax.tree.map(self._placed, quantizer))
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
    where, leaves = self.directory.path, trees.arrays(self._abstract)
    expected = {entry.tensor: (None, entry.layout.shape(leaves[path].shape)) for path, entry in self._floats.items()}
    if self.quantized:
      expected |= self.quantized.tensors()
    self.names.check_complete(where, expected, self._is_nothing)
    for name, (dtype, shape) in expected.items():
      tensor = self.directory.tensor(name)
      floating = np.issubdtype(tensor.dtype, np.floating) or tensor.dtype.name == 'bfloat16'
      if not (floating if dtype is None else tensor.dtype == dtype):
        raise errors.UserError(f'{where}: {name} is {tensor.dtype.name}, not {dtype or "of a floating dtype"}')
      if tensor.shape != shape:
        raise errors.UserError(f'{where}: {name} has shape {tensor.shape} instead of {shape}')

    for name, tensor in self.names.copies().items():
      if not _equal(*map(self.directory.array, (name, tensor))):
        raise errors.UserError(f'{where}: {name} is not {tensor}, though the two are one in such a model; '
                               'tie_word_embeddings of config.json says whether they are')

  def _is_nothing(self, name: str) -> bool:
    """Whether a tensor is the bias of zeros that some quantizers add where the architecture has none."""
    module, _, leaf = name.rpartition('.')
    coded = {linear.module for linear in self.quantized.linears.values()} if self.quantized else ()
    return leaf == 'bias' and module in coded and not np.any(self.directory.array(name))

  def _place(self, path: str) -> tuple[pathlib.Path, int]:
    """Where an array, or the first tensor of a linear, stands: disks read forwards fastest."""
    tensor = self._floats[path].tensor if path in self._floats else self.quantized.tensor(path)
    file = self.directory.files[tensor]
    return file.path, file.tensors[tensor].begin

  def _array(self, path: str) -> jax.Array:
    entry = self._floats[path]
    # What was read is nowhere else, so that a CPU device may have it as it is.
    return self._placed(slabs.read(self.directory.files[entry.tensor], entry.tensor, entry.layout), lambda view: view)

  def _layer(self, path: str) -> dict[str, Any]:
    return jax.tree.map(self._placed, self.quantized.layer(path, self.directory))

  def _placed(self, view: np.ndarray, copy=np.array) -> jax.Array:
    return jax.make_array_from_callback(view.shape, self._shardings(view.shape), lambda index: copy(view[index]))


def _equal(first: np.ndarray, second: np.ndarray) -> bool:
  """Whether two arrays of a file are equal, compared a few rows at a time."""
  return first.shape == second.shape and all(
      np.array_equal(first[i : i + _ROWS], second[i : i + _ROWS]) for i in range(0, len(first), _ROWS))


def _mask_token(folder: directory.Directory, vocabulary: int) -> int | None:
  """The token that hides others from an encoder, by its name in the tokenizer; None if there is none of such a name."""
  added = folder.json(_TOKENIZER).get('added_tokens') if folder.has(_TOKENIZER) else None
  if added is not None and not isinstance(added, list):
    raise errors.UserError(f'{folder.path / _TOKENIZER}: added_tokens is no list')
  for token in added or ():
    if not isinstance(token, dict) or type(token.get('id')) is not int or not 0 <= token['id'] < vocabulary:
      raise errors.UserError(
          f'{folder.path / _TOKENIZER}: {token!r} of added_tokens is no token of the {vocabulary} of the model')
    if token.get('content') in _MASKS:
      return token['id']
  return None
