"""A model of others, in a Hugging Face directory, opened for reading."""

import functools
import pathlib
import shutil
from typing import Any

from jaxquant import errors
from jaxquant.data import tokenizers
from jaxquant.interop import directory
from jaxquant.interop import source
from jaxquant.layers import sharding
from launch import quantization
from launch import settings
from launch import workdir


class Imported:
  """The `models.Model` that is a Hugging Face directory. Its tokenizer and its context length are its own.

  Attributes:
    path: the directory.
    decoder: the architecture.
    length: its context length.
    quantization: how the comparison quantizes it: as a training does by default.
    masks: whether its tokenizer names the token that hides others from an encoder.
  """

  imported, variant, seed, step = True, 'imported', 0, None

  def __init__(self, path: str, fully_sharded: bool = False):
    """Checks configuration, tensors and tokenizer.

    Args:
      path: the directory.
      fully_sharded: whether arrays are split over the devices; otherwise each device holds all of them.

    Raises:
      UserError: whatever is wrong with them.
    """
    self._source = source.DirectorySource(
        path, functools.partial(sharding.parameter_sharding, sharding.data_mesh(), fully=fully_sharded))
    self.path, self.decoder = self._source.directory.path, self._source.config
    self.length, self.masks = self.decoder.max_length, self._source.masks
    self.quantization = quantization.Quantization.of(settings.train())
    self.tokenizer()

  @property
  def architecture(self) -> dict[str, Any]:
    """The architecture as JSON values."""
    return self.decoder.to_dict()

  @property
  def methods(self) -> tuple[str, ...]:
    """The format that others quantized it in, which is what is known of their method; none for a float model."""
    return (self._source.quantized.method,) if self._source.quantized else ()

  @property
  def quantized(self) -> bool:
    """Whether others have quantized it."""
    return self._source.quantized is not None

  def load(self) -> tuple[dict, str]:
    """(the whole tree, a description)."""
    return self._source.whole(), self._description

  def abstract(self) -> dict:
    """The tree as shapes."""
    return self._source.abstract()

  def blocks(self) -> tuple[source.DirectorySource, str]:
    """(what loads the tree block by block, a description)."""
    return self._source, self._description

  def tokenizer(self) -> tokenizers.Tokenizer:
    """Its own tokenizer; raises `UserError` if there is none that we read."""
    folder = self._source.directory
    if not folder.has('tokenizer.json'):
      raise errors.UserError(
          f'{self.path} has no tokenizer.json; tokenizer.save_pretrained(DIR) of transformers makes one')
    made = tokenizers.Tokenizer.load(folder.file('tokenizer.json'))
    if made.vocab_size > self.decoder.vocabulary:
      raise errors.UserError(f'{self.path}/tokenizer.json has {made.vocab_size} tokens, and the model embeds '
                             f'{self.decoder.vocabulary}')
    return made

  def training_tokens(self):
    """Raises `UserError`: what it was trained on is not in its directory."""
    raise errors.UserError(f'{self.path} does not hold what the model was trained on')

  def carry(self, folder: pathlib.Path) -> None:
    """Copies the tokenizer, and what an export needs again, to a workdir."""
    origin = folder / workdir.ORIGIN
    origin.mkdir(exist_ok=True)
    shutil.copyfile(self._source.directory.file(directory.CONFIG), origin / directory.CONFIG)
    self._source.directory.carry(origin)
    shutil.copyfile(self._source.directory.file('tokenizer.json'), folder / 'tokenizer.json')

  def origin(self) -> directory.Directory:
    """Its own directory."""
    return self._source.directory

  def provenance(self) -> dict[str, Any]:
    """JSON values: what it was made from: its fingerprint."""
    return {'source': {'directory': str(self.path), 'sha256': self._source.directory.fingerprint()}}

  def decisions(self) -> dict[str, Any]:
    """None: nothing is known of its calibration."""
    return {}

  @property
  def _description(self) -> str:
    kind = self._source.directory.config['model_type']
    return f'{self.path}: {kind}, {self.decoder.layers} blocks of {self.decoder.width}'
