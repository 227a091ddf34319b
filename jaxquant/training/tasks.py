"""What a model predicts: the next token, or tokens that were hidden from it."""

import jax
import jax.numpy as jnp

from jaxquant.models import config as model_config

_HIDDEN = 0.15  # of all tokens are to be predicted (BERT, arXiv:1810.04805, section 3.1)
_MASKED, _RANDOM = 0.8, 0.1  # of those: replaced by the mask token, by a random one; the rest stay as they are


def predictions(config: model_config.TransformerConfig, tokens, step=0):
  """Inputs and targets of a batch.

  Args:
    config: the model; a decoder predicts the next token, an encoder hidden ones.
    tokens: int32 [rows, length + 1].
    step: int32 scalar. What is hidden from an encoder follows from it and from the tokens of a row alone, so that it
      is the same on any number of devices, and any step can be repeated.

  Returns:
    (inputs, targets, weights): int32 [rows, length], the same, and float32 [rows, length]: how much a target counts,
    one on average.
  """
  if config.causal:
    return tokens[:, :-1], tokens[:, 1:], jnp.ones_like(tokens[:, 1:], jnp.float32)
  tokens = tokens[:, :-1]
  inputs, hidden = _hide(config, tokens, step)
  return inputs, tokens, hidden / _HIDDEN


def scored(config: model_config.TransformerConfig, tokens, present):
  """The same for a whole window that is scored: (inputs, targets, whether a target counts), each [rows, length].

  Args:
    config: the model.
    tokens: int32 [rows, length].
    present: bool [rows, length], False where a window is filled up.
  """
  if config.causal:
    # The last token is read, too, though no target is left for it: lengths stay even, which cuDNN's gradients need.
    after = lambda values: jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
    return tokens, after(tokens), after(present)
  inputs, hidden = _hide(config, tokens, 0)
  return inputs, tokens, hidden & present


def _hide(config, tokens, step):
  """(tokens with some of them hidden, which ones)."""

  def row(tokens):
    key = jax.random.fold_in(jax.random.key(0), step)
    # Two words of a polynomial hash of the row; what they repeat would repeat its hidden places too.
    powers = jnp.cumprod(jnp.full(tokens.shape, 0x9E3779B1, jnp.uint32))
    key = jax.random.fold_in(key, jnp.sum(tokens.astype(jnp.uint32) * powers))
    choice, kind, other = jax.random.split(key, 3)
    hidden = jax.random.uniform(choice, tokens.shape) < _HIDDEN
    kind = jax.random.uniform(kind, tokens.shape)
    random = jax.random.randint(other, tokens.shape, 0, config.text_vocabulary, tokens.dtype)
    shown = jnp.where(kind < _MASKED, config.mask_token, jnp.where(kind < _MASKED + _RANDOM, random, tokens))
    return jnp.where(hidden, shown, tokens), hidden

  return jax.vmap(row)(tokens)
