"""A trained or quantized model in a workdir, opened for reading."""

import pathlib
import shutil
from typing import Any

import jax

from jaxquant import errors
from jaxquant.data import token_file
from jaxquant.data import tokenizers
from jaxquant.interop import descriptions
from jaxquant.interop import directory
from jaxquant.interop import writing
from jaxquant.models import config as model_config
from jaxquant.models import staging
from jaxquant.models import validate
from jaxquant.training import checkpoints
from jaxquant.training import qat
from launch import quantization
from launch import settings
from launch import workdir


class Trained:
  """The `models.Model` that is one variant and seed of what a workdir holds.

  Attributes:
    path: the workdir.
    variant, seed: which of its models.
    step: which of its checkpoints; None where there are none.
    config: of the workdir, as JSON values.
    decoder: the architecture.
    length: tokens of the sequences that it was trained on.
    quantized: whether `launch.quantize` made it.
    quantization: how the comparison quantizes it: as its training did.
  """

  imported, masks = False, True

  def __init__(self, path: str, variant: str | None = None, seed: int | None = None, step: str = 'newest'):
    """Finds the model.

    Args:
      path: a workdir of `launch.train` or `launch.quantize`; it holds a `config.json`.
      variant: which of its variants; the last of `workdir.VARIANTS` that it holds by default.
      seed: which of its seeds; the smallest by default.
      step: which of its checkpoints: `newest`, `best` (of the smallest validation loss), or a number.

    Raises:
      UserError: the directory is no workdir, or lacks that variant, seed or step.
    """
    self.path = pathlib.Path(path)
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
      self.quantized = 'methods' in self.config['ptq']
      self.quantization = quantization.Quantization.of(settings.train() if self.quantized else self.config)
    except (KeyError, TypeError, ValueError) as error:
      raise errors.UserError(f'{path}/config.json does not describe a model: {error}') from error
    self.step = self._step(step)

  @property
  def architecture(self) -> dict[str, Any]:
    """The architecture as JSON values, as the workdir has it."""
    return self.config['model']

  @property
  def methods(self) -> tuple[str, ...]:
    """The methods that quantized its weights; none for a float model."""
    asked = self.config.get('ptq', {})
    return tuple(asked.get('methods', ())) if asked.get('weights') != 16 else ()

  @property
  def checkpoints(self) -> str:
    """Directory of its checkpoints."""
    return workdir.checkpoint_directory(self.path, self.variant, self.seed)

  def load(self) -> tuple[dict, str]:
    """(the tree of the checkpoint, which fits the model; a description); raises `CheckpointError`."""
    try:
      # Of that step or none: what is made of it says which.
      restored = checkpoints.load_params(self.checkpoints, self.step)
    except errors.CheckpointError as error:
      steps = checkpoints.Checkpoints(self.checkpoints, read_only=True).all_steps()
      before = [f'; before it there is step {step}' for step in steps if step < self.step]
      raise errors.CheckpointError(str(error) + ''.join(before[-1:])) from error
    validate.validate(restored.state['params'], self.decoder)
    return restored.state['params'], f'{self.path} {self.variant} seed {self.seed} step {restored.step}'

  def abstract(self) -> dict:
    """The tree as shapes: what its configuration says of it, before it is loaded; without codes."""
    tree = validate.abstract_params(self.decoder)
    if self.quantized or self.variant not in workdir.QUANTIZED:
      return tree
    names = tuple(site.name for site in staging.model_sites(self.decoder))
    return jax.eval_shape(lambda params: qat.prepare(params, qat.QATConfig(**self.config['qat']), names), tree)

  # A checkpoint is restored as a whole.
  blocks = load

  def tokenizer(self) -> tokenizers.Tokenizer:
    """Its tokenizer."""
    return tokenizers.Tokenizer.load(self.path)

  def carry(self, folder: pathlib.Path) -> None:
    """Copies to another workdir what a model is used with: the tokenizer, and files of the directory it came from."""
    shutil.copy(self.path / 'tokenizer.json', folder / 'tokenizer.json')
    if (self.path / workdir.ORIGIN).is_dir():
      shutil.copytree(self.path / workdir.ORIGIN, folder / workdir.ORIGIN, dirs_exist_ok=True)

  def origin(self) -> writing.Origin:
    """What it was imported with, or its description in the words of others, where it was trained here.

    Raises:
      UserError: no architecture of others is that of this model.
    """
    if (self.path / workdir.ORIGIN).is_dir():
      return directory.Directory(self.path / workdir.ORIGIN)
    tokenizer = self.tokenizer()
    return descriptions.Description(self.decoder, tokenizer.backend, tokenizer.end_of_text)

  def provenance(self) -> dict[str, Any]:
    """JSON values: what it was made from, and how."""
    return {key: self.config[key] for key in ('source', 'ptq') if key in self.config}

  def decisions(self) -> dict[str, Any]:
    """What its calibration measured and decided, by path."""
    path = self.path / workdir.DECISIONS
    return workdir.read_json(path) if path.exists() else {}

  def training_tokens(self):
    """The tokens that it was trained on, [tokens]; raises `UserError` if those that are there are others."""
    found = token_file.load(self.path / 'tokens' / 'train.npy')
    saved = {} if self.step is None else checkpoints.Checkpoints(self.checkpoints, read_only=True).metadata(self.step)
    if saved.get('tokens', found.fingerprint) != found.fingerprint:
      raise errors.UserError(f'{self.path}/tokens are of another text than {self.variant} was trained on')
    return found.tokens

  def _step(self, asked: str) -> int | None:
    saved = checkpoints.Checkpoints(self.checkpoints, best_metric=workdir.BEST_METRIC, read_only=True)
    if asked == 'newest':
      return saved.latest_step()
    if asked == 'best':
      if (best := saved.best_step()) is None:
        raise errors.UserError(f'--step=best: no checkpoint in {self.checkpoints} has a validation loss')
      return best
    if not asked.isdecimal():
      raise errors.UserError(f'--step={asked}: there are newest, best, and the numbers of the steps that are kept')
    if int(asked) not in (steps := saved.all_steps()):
      raise errors.UserError(f'--step={asked}: {self.checkpoints} has only {", ".join(map(str, steps)) or "none"}')
    return int(asked)
