"""Models that a launcher takes: trained or quantized ones in a workdir, or those of others in their directory."""

import pathlib
from typing import Any, Protocol

from jaxquant import errors
from jaxquant.calibration import stores
from jaxquant.data import tokenizers
from jaxquant.interop import writing
from jaxquant.models import config as model_config
from jaxquant.numerics import nodes
from jaxquant.numerics import trees
from launch import imported
from launch import quantization
from launch import trained
from launch import workdir


class Model(Protocol):
  """A model opened for reading.

  Attributes:
    path: its directory.
    imported: whether that is not a workdir, so that nothing is known of what it was trained on.
    variant, seed, step: which of the models there; None where there are no steps.
    masks: whether it is known which token hides others from it, as far as it is an encoder.
    decoder: the architecture; `architecture`: the same as JSON values.
    length: tokens of a window unless told otherwise: of the sequences that it was trained on, or its context length.
    methods: those that quantized its weights; none for a float model.
    quantized: whether it is what a quantization made, whatever was left in floats.
    quantization: how the comparison quantizes it, if it is not.
  """

  path: pathlib.Path
  imported: bool
  masks: bool
  variant: str
  seed: int
  step: int | None
  decoder: model_config.TransformerConfig
  architecture: dict[str, Any]
  length: int
  methods: tuple[str, ...]
  quantized: bool
  quantization: quantization.Quantization

  def abstract(self) -> dict:
    """The tree as shapes, as far as it is known before it is loaded."""

  def load(self) -> tuple[dict, str]:
    """(the tree, a description of it for the user)."""

  def blocks(self) -> tuple[dict | stores.Source, str]:
    """The same for the calibration driver: a source that loads block by block where the model allows it."""

  def tokenizer(self) -> tokenizers.Tokenizer:
    """Its tokenizer."""

  def training_tokens(self):
    """The tokens that it was trained on, [tokens]; raises `UserError` if they are not known."""

  def carry(self, folder: pathlib.Path) -> None:
    """Copies to a workdir what a model is used with: tokenizer and configuration."""

  def origin(self) -> writing.Origin:
    """What an export writes beside the tensors; raises `UserError` if others have no such architecture."""

  def provenance(self) -> dict[str, Any]:
    """JSON values: what it was made from, and how."""

  def decisions(self) -> dict[str, Any]:
    """What its calibration measured and decided, by path."""


def find(
    path: str, variant: str | None = None, seed: int | None = None, step: str = 'newest', fully_sharded: bool = False
) -> Model:
  """The model in a directory.

  Args:
    path: a workdir of `launch.train` or `launch.quantize`, or a Hugging Face directory.
    variant: which of the variants of a workdir; the last of `workdir.VARIANTS` that it holds by default.
    seed: which of its seeds; the smallest by default.
    step: which of its checkpoints: `newest`, `best` (of the smallest validation loss), or a number.
    fully_sharded: whether a Hugging Face directory is split over the devices; a workdir is restored as it was saved.

  Raises:
    UserError: the directory is missing, is neither, or lacks that variant, seed or step.
  """
  config = pathlib.Path(path) / 'config.json'
  if not config.is_file():
    raise errors.UserError(f'{path} is neither a workdir nor a model directory: it has no config.json')
  if 'model_type' not in workdir.read_json(config):
    if fully_sharded:
      raise errors.UserError(f'--fully_sharded means nothing here: {path} is a workdir, restored as it was saved')
    return trained.Trained(path, variant, seed, step)
  if variant is not None or seed is not None or step != 'newest':
    raise errors.UserError(f'{path} is a model directory, which has neither variants nor seeds nor steps')
  return imported.Imported(path, fully_sharded)


def quantized_linear(params: Any) -> str | None:
  """The path of the first linear layer that holds integer codes, or None for a float tree."""
  return next((path for path in trees.linears(params) if nodes.is_node(trees.get(params, path)['kernel'])), None)


def method(names) -> str:
  """How a sequence of methods is called in results."""
  return '+'.join('rtn' if name == 'round_to_nearest' else name for name in names) or 'rtn'
