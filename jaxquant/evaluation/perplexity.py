"""Perplexity and bits per byte of a text.

Protocol: the text's tokens are cut into windows of the context length, without overlap; in each, every token but the
first is predicted; the last, partial window counts; the mean runs over the predicted tokens. Bits per byte are the mean
bits per predicted token times the tokens per byte of the whole text, hence comparable across tokenizers.

Of a masked language model the same is taken over the tokens that are hidden from it, 15 in 100, always the same of a
window (training.tasks): what is often called pseudo-perplexity, comparable among such models only.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxquant import compilation
from jaxquant import errors
from jaxquant.layers import sharding
from jaxquant.models import config as model_config
from jaxquant.models import staging
from jaxquant.training import losses
from jaxquant.training import tasks


class Score(NamedTuple):
  """Log likelihood of a text.

  Attributes:
    nats: negative log likelihood summed over the predicted tokens.
    predicted: predicted tokens.
    tokens: tokens of the text, the first of every window included.
    text_bytes: UTF-8 bytes of the text.
  """

  nats: float
  predicted: int
  tokens: int
  text_bytes: int

  @property
  def perplexity(self) -> float:
    """exp of the mean negative log likelihood; infinity where that overflows, NaN of NaN."""
    mean = self.nats / self.predicted
    return math.inf if mean >= 700 else math.exp(mean)

  @property
  def bits_per_byte(self) -> float:
    """Bits that code one byte of the text."""
    return self.nats / self.predicted / math.log(2) * self.tokens / self.text_bytes


def windows(tokens: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
  """Cuts `tokens` [n] into rows of `length`: (int32 [rows, length], bool [rows, length] true where a token stands).

  A text that is shorter is a row of its own length.

  Raises:
    UserError: fewer than two tokens in the text or in a window, so that there is nothing to predict.
  """
  if length < 2:
    raise errors.UserError(f'windows of {length} tokens have none to predict')
  if len(tokens) < 2:
    raise errors.UserError(f'a text of {len(tokens)} tokens has none to predict')
  length = min(length, len(tokens))
  rows = -(-len(tokens) // length)
  padded = np.zeros(rows * length, np.int32)
  padded[: len(tokens)] = tokens
  return padded.reshape(rows, length), (np.arange(rows * length) < len(tokens)).reshape(rows, length)


def score(
    params: Any, config: model_config.TransformerConfig, tokens: np.ndarray, text_bytes: int, *,
    length: int | None = None, batch_size: int = 32, implementation: str = 'simulated',
    mesh: jax.sharding.Mesh | None = None) -> Score:
  """Scores a tokenized text.

  Args:
    params: a tree of the model, float or quantized.
    config: the model.
    tokens: integer [n].
    text_bytes: UTF-8 bytes of the text.
    length: of a window; the model's `max_length` by default.
    batch_size: windows evaluated at once.
    implementation: how codes meet codes (layers.linear).
    mesh: devices to spread the windows over; one device without it.

  Returns:
    The Score.

  Raises:
    UserError: there is nothing to predict.
  """
  rows, present = windows(np.asarray(tokens), length or config.max_length)
  parts = [(rows, present)]
  if not config.causal and not present[-1].all():
    # By itself and as long as it is, since a model that sees both ways would see what fills it up.
    rest = np.s_[-1:, : present[-1].sum()]
    parts = [(rows[:-1], present[:-1]), (rows[rest], present[rest])]
  total, predicted = 0.0, 0
  for rows, present in parts:
    size = min(batch_size, len(rows))
    for start in range(0, len(rows), size):
      batch, mask = rows[start : start + size], present[start : start + size]
      fill = ((0, size - len(batch)), (0, 0))
      batch, mask = np.pad(batch, fill), np.pad(mask, fill)
      if mesh is not None:
        batch, mask = sharding.place_whole(mesh, batch), sharding.place_whole(mesh, mask)
      nats, counted = _nats(params, batch, mask, config=config, implementation=implementation)
      total += float(np.asarray(nats).sum(dtype=np.float64))
      predicted += int(np.asarray(counted).sum())
  if not predicted:
    raise errors.UserError(f'of {len(tokens)} tokens none is hidden from the model; a masked one needs a longer text')
  return Score(total, predicted, len(tokens), text_bytes)


@functools.partial(compilation.jit, static_argnames=('config', 'implementation'))
def _nats(params, tokens, mask, *, config, implementation):
  """Negative log likelihood, float32 [rows], and predictions, int32 [rows], of every window, on every device."""
  inputs, targets, counted = tasks.scored(config, tokens, mask)
  logits = staging.make(config, implementation).apply({'params': params}, inputs)
  nats = jnp.where(counted, losses.cross_entropy(logits, targets), 0.0)
  return sharding.constrain_replicated((jnp.sum(nats, axis=-1), jnp.sum(counted, axis=-1)))
