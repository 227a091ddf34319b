"""A trained or quantized model in a workdir, opened for reading."""

import json
import pathlib
from typing import Any

from jaxquant import errors
from jaxquant.data import token_file
from jaxquant.data import tokenizers
from jaxquant.models import config as model_config
from jaxquant.models import validate
from jaxquant.numerics import nodes
from jaxquant.numerics import trees
from jaxquant.training import checkpoints
from jaxquant.training import restoring
from launch import workdir


class Model:
  """One variant and seed of what a workdir holds.

  Attributes:
    path: the workdir.
    variant, seed: which of its models.
    config: of the workdir, as JSON values.
    decoder: the architecture.
    length: tokens of the sequences that it was trained on.
  """

  def __init__(self, path: str | None, variant: str | None = None, seed: int | None = None):
    """Finds the model.

    Args:
      path: a workdir of `launch.train` or `launch.quantize`.
      variant: which of its variants; the last of `workdir.VARIANTS` that it holds by default.
      seed: which of its seeds; the smallest by default.

    Raises:
      UserError: the directory is missing, is no workdir, or lacks that variant or seed.
    """
    self.path = pathlib.Path(path)
    if not (self.path / 'config.json').is_file():
      raise errors.UserError(f'{path} is not a workdir: it has no config.json')
    self.config = workdir.read_json(self.path / 'config.json')
    folder = self.path / 'checkpoints'
    found = [p.name.rpartition('-seed') for p in folder.iterdir() if p.is_dir()] if folder.is_dir() else []
    runs = sorted((name, int(number)) for name, _, number in found if number.isdigit())
    order = {name: i for i, name in enumerate(workdir.VARIANTS)}
    matches = [run for run in runs if variant in (None, run[0]) and seed in (None, run[1])]
    if not matches:
      have = ', '.join(f'{name} seed {number}' for name, number in runs) or 'no checkpoints'
      wanted = f'variant {variant or "any"} with seed {"any" if seed is None else seed}'
      raise errors.UserError(f'{path} has no {wanted}, only {have}')
    self.variant, self.seed = max(matches, key=lambda run: (order.get(run[0], len(order)), -run[1]))
    try:
      self.length = int(self.config['training']['length'])
      self.decoder = model_config.TransformerConfig.from_dict(self.config['model'])
    except (KeyError, TypeError, ValueError) as error:
      raise errors.UserError(f'{path}/config.json does not describe a model: {error}') from error

  @property
  def method(self) -> str:
    """How its weights were quantized, or will be by a launcher that asks for no method."""
    return method(self.config.get('ptq', {}).get('methods', ()))

  @property
  def checkpoints(self) -> str:
    """Directory of its checkpoints."""
    return workdir.checkpoint_directory(self.path, self.variant, self.seed)

  def load(self, report=None) -> restoring.Restored:
    """The newest undamaged checkpoint's `params`, which fit the architecture; raises `CheckpointError`."""
    restored = checkpoints.load_params(self.checkpoints, report=report)
    validate.validate(restored.state['params'], self.decoder)
    return restored

  def tokenizer(self) -> tokenizers.Tokenizer:
    """Its tokenizer."""
    return tokenizers.Tokenizer.load(self.path)

  def training_tokens(self):
    """The tokens that it was trained on, [tokens]."""
    return token_file.load(self.path / 'tokens' / 'train.npy').tokens


def quantized_linear(params: Any) -> str | None:
  """The path of the first linear layer that holds integer codes, or None for a float tree."""
  return next((path for path in trees.linears(params) if nodes.is_node(trees.get(params, path)['kernel'])), None)


def method(names) -> str:
  """How a sequence of methods is called in results."""
  return '+'.join('rtn' if name == 'round_to_nearest' else name for name in names) or 'rtn'
