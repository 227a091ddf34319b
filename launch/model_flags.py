"""The flags of the launchers that take a trained model and texts to score."""

from typing import Any

from absl import flags

from jaxquant import errors
from jaxquant.data import text
from jaxquant.interop import manifest
from launch import corpora
from launch import models

_MODEL = flags.DEFINE_string('model', None, 'Workdir of a trained or quantized model, or a Hugging Face directory.')
_VARIANT = flags.DEFINE_string('variant', None, 'Which of its variants; by default the one trained for quantization.')
_SEED = flags.DEFINE_integer('seed', None, 'Which of its seeds; the smallest by default.')
_STEP = flags.DEFINE_string(
    'step', 'newest', 'Which of its checkpoints: newest, best (of the smallest validation loss), or a number.')
_SHARDED = flags.DEFINE_bool(
    'fully_sharded', False, 'Split the parameters of a Hugging Face directory over the devices; otherwise each device '
    'holds all of them.')
_TEXT = flags.DEFINE_multi_string('text', [], 'Texts to score.')


def model(to_be_written: bool = False) -> models.Model:
  """The model of the flags.

  Args:
    to_be_written: whether another one is made of it, whose manifest will vouch for it: then its own one, where it has
      one, is held against its files from end to end, and otherwise against their sizes.

  Raises:
    UserError: there is no model, or a text to score is missing or unreadable.
    CheckpointError: files of the model are not those that were written with its manifest.
  """
  if not _MODEL.value:
    raise errors.UserError('--model=DIR is needed: a workdir, or a Hugging Face directory')
  if _TEXT.value:
    text.check_readable(_TEXT.value)
  found = models.find(_MODEL.value, _VARIANT.value, _SEED.value, _STEP.value, _SHARDED.value)
  manifest.verify_if_there(found.path, contents=to_be_written)
  if _TEXT.value and not found.decoder.head:
    raise errors.UserError(f'{found.path} has no language-model head, so that it cannot score a text')
  if _TEXT.value and not found.decoder.causal and not found.masks:
    raise errors.UserError(f'{found.path} is an encoder whose tokenizer names no mask ([MASK] or <mask>), which '
                           'hides the tokens to score')
  return found


def source(found: models.Model) -> dict[str, Any]:
  """JSON values: which model it is."""
  return {'workdir': str(found.path), 'variant': found.variant, 'seed': found.seed, 'step': found.step}


def text_names() -> list[str]:
  """The texts of the flags, as they are named there, each once."""
  return list(dict.fromkeys(_TEXT.value))


def texts(tokenizer) -> list[corpora.Text]:
  """The texts of the flags, read and tokenized."""
  return [corpora.read_text(source, (source,), tokenizer) for source in text_names()]
