"""Which tensor of a file an array of our tree is, and how: transposed, cut out of a fused one, rows left out."""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from jaxquant import errors
from jaxquant.interop import families
from jaxquant.models import config as model_config
from jaxquant.models import validate
from jaxquant.numerics import trees

_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias'}
# Older files say gamma and beta.
_OLD_LEAVES = {'weight': 'gamma', 'bias': 'beta'}


class Layout(NamedTuple):
  """How an array of ours lies in a tensor.

  Attributes:
    transposed: the tensor is [out, in], or [..., out, in groups] and the like: its last two axes are exchanged.
    fused: see `families.Family`; '' for a tensor of its own.
    part: which of the three parts of a fused tensor.
    heads: of a fused tensor.
    skipped: rows at the top that belong to none.
  """

  transposed: bool = False
  fused: str = ''
  part: int = 0
  heads: int = 1
  skipped: int = 0

  def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the tensor, given that of our array."""
    shape = [*ours[:-1], ours[-1] * (3 if self.fused else 1)]
    shape[0] += self.skipped
    return tuple(reversed(shape)) if self.transposed else tuple(shape)

  def take(self, tensor: np.ndarray) -> np.ndarray:
    """Our array, a view of the tensor where that is possible."""
    array = tensor.T if self.transposed and tensor.ndim > 1 else tensor
    array = array[self.skipped:]
    if not self.fused:
      return array
    lead = array.shape[:-1]
    if self.fused == 'heads':
      return array.reshape(*lead, self.heads, 3, -1)[..., self.part, :].reshape(*lead, -1)
    return array.reshape(*lead, 3, -1)[..., self.part, :]

  def give(self, *arrays: np.ndarray) -> np.ndarray:
    """The tensor that `take` finds the arrays in: one, or the three parts of a fused one. Rows left out are zeros."""
    array, lead = arrays[0], arrays[0].shape[:-1]
    if self.fused == 'heads':
      array = np.stack([part.reshape(*lead, self.heads, -1) for part in arrays], axis=-2).reshape(*lead, -1)
    elif self.fused:
      array = np.concatenate(arrays, axis=-1)
    if self.skipped:
      array = np.concatenate([np.zeros((self.skipped, *array.shape[1:]), array.dtype), array])
    return array.T if self.transposed and array.ndim > 1 else array


class Entry(NamedTuple):
  """An array of our tree in a file: the path of our array, the name of the tensor, and how it lies in there."""

  path: str
  tensor: str
  layout: Layout


class Names:
  """The tensors of a model.

  Attributes:
    entries: of every array of the float tree, by path.
  """

  def __init__(self, family: families.Family, config: model_config.TransformerConfig, present: Iterable[str] = ()):
    """Names the tensors, as a file with those `present` does, or as we write them where there is no such file."""
    self._family, self._config = family, config
    present = set(present)
    first = family.root['embedding']
    bases = (base for base in family.bases if f'{first.format(base=base)}.weight' in present)
    self._base = next(bases, family.bases[0])
    self._present = present
    self.entries = {path: self._entry(path) for path in trees.arrays(validate.abstract_params(config))}

  def module(self, path: str) -> str:
    """What files call a linear, a norm or an embedding of ours."""
    match = re.fullmatch(r'layers/(\d+)/(.*)', path)
    if path in self._family.root:
      template, index = self._family.root[path], 0
    elif path == 'final_norm':
      template, index = self._family.block['closing_norm'], self._config.layers - 1
    elif match and match[2] == 'attention_norm' and 'closing_norm' in self._family.block:
      template, index = self._family.block['closing_norm'], int(match[1]) - 1
    else:
      template, index = self._family.block[match[2]], int(match[1])
    return template.format(base=self._base, i=index)

  def layout(self, path: str) -> Layout:
    """How the kernel or the bias of a linear, or another array, lies in its tensor."""
    module, _, leaf = path.rpartition('/')
    fused = self._family.fused if (part := module[-11:]) in ('attention/q', 'attention/k', 'attention/v') else ''
    return Layout(
        transposed=self._family.transposed and leaf == 'kernel' and module not in trees.TABLES, fused=fused,
        part='qkv'.index(part[-1]) if fused else 0, heads=self._config.heads if fused else 1,
        skipped=self._family.skipped if module == 'positions' else 0)

  def copies(self) -> dict[str, str]:
    """Tensors of the file that repeat another one, by name: that one's name."""
    found = self._family.copies if self._config.tied else {}
    return {copy: self.entries[path].tensor for copy, path in found.items()
            if copy in self._present and path in self.entries}

  def check_complete(self, where, expected: Iterable[str], is_nothing: Callable[[str], bool]) -> None:
    """Raises `UserError` naming tensors that are missing or that belong to nothing.

    Args:
      where: the directory, for messages.
      expected: all tensors that the tree is made of.
      is_nothing: whether a tensor that is not one of them may be there all the same.
    """
    expected = set(expected)
    left = sorted(name for name in self._present - expected - {*self.copies()}
                  if not any(re.fullmatch(pattern, name) for pattern in self._family.ignored) and not is_nothing(name))
    missing = sorted(expected - self._present)
    for names, problem in ((missing, 'lacks'), (left, 'holds tensors that the architecture has no place for:')):
      if names:
        more = f' and {len(names) - 3} more' if len(names) > 3 else ''
        raise errors.UserError(f'{where} {problem} {", ".join(names[:3])}{more}')

  def _entry(self, path: str) -> Entry:
    module, _, leaf = path.rpartition('/')
    if path in self._family.root:
      return Entry(path, self._family.root[path], self.layout(path))
    name, leaf = self.module(module), _LEAVES[leaf]
    old = f'{name}.{_OLD_LEAVES[leaf]}'
    return Entry(path, old if old in self._present else f'{name}.{leaf}', self.layout(path))
