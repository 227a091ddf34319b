"""What models are calibrated on: texts that a flag names, or the tokens that a model was trained on."""

from collections.abc import Sequence
from typing import Any

from absl import flags
import numpy as np

from jaxquant import errors
from jaxquant.data import loader
from jaxquant.data import text
from jaxquant.layers import sharding

_LENGTH = 2048  # tokens of a window at most, unless told otherwise


def define_texts() -> flags.FlagHolder[list[str]]:
  """Defines the flag of the launchers that calibrate."""
  return flags.DEFINE_multi_string(
      'calibration', [], 'Texts to calibrate on; the tokens that the model was trained on by default.')


def check(texts: Sequence[str], model: Any, what: str = '') -> None:
  """Raises `UserError` if a text is unreadable, or none is given for a model that came without its training tokens.

  Args:
    texts: values of the flag.
    model: a `models.Model`.
    what: needs them, if it is not the launcher as a whole.
  """
  if texts:
    text.check_readable(texts)
  elif model.imported:
    raise errors.UserError(f'--calibration=FILE is needed{what and f" for {what}"}: {model.path} does not hold what '
                           'the model was trained on')


def tokens(texts: Sequence[str], model: Any) -> np.ndarray:
  """The tokens of the texts, or else those that the model was trained on, [tokens]."""
  return model.tokenizer().encode_documents(text.read_documents(texts)) if texts else model.training_tokens()


def length(model: Any) -> int:
  """Tokens of a window, unless told otherwise."""
  return min(model.length, _LENGTH)


def batches(token_ids: np.ndarray, windows: int, window_length: int, seed: int) -> list:
  """A sample of windows of `token_ids` in batches of about 16, int32 [sequences, window_length] each."""
  sample = loader.calibration_windows(token_ids, count=windows, length=window_length, seed=seed)
  mesh = sharding.data_mesh()
  return [sharding.place_whole(mesh, batch) for batch in np.array_split(sample, max(1, len(sample) // 16))]
