"""Sentence embeddings: what an encoder makes of whole texts, pooled over their tokens.

As sentence-transformers does it: `mean` over all tokens, special ones included (Sentence-BERT, arXiv:1908.10084), or
the `first` one, [CLS], alone; perhaps divided by its length, so that products are cosines. Texts of one length are
evaluated at once, so that none is filled up and nothing has to be masked.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxquant import compilation
from jaxquant import errors
from jaxquant.data import tokenizers
from jaxquant.models import config as model_config
from jaxquant.models import staging

POOLINGS = ('mean', 'first')


@functools.partial(compilation.jit, static_argnames=('config', 'pooling', 'implementation'))
def pooled(params: Any, ids, *, config: model_config.TransformerConfig, pooling: str = 'mean',
           implementation: str = 'simulated'):
  """Embeddings of tokenized texts of one length.

  Args:
    params: a tree of the encoder, float or quantized.
    ids: int32 [texts, tokens].
    config: the encoder, with a head or without.
    pooling: one of `POOLINGS`.
    implementation: how codes meet codes (layers.linear).

  Returns:
    float32 [texts, width].
  """
  encode = lambda encoder: encoder.hidden(encoder.layers(encoder.embed(ids)))
  hidden = staging.make(config, implementation).apply({'params': params}, method=encode).astype(jnp.float32)
  return hidden[:, 0] if pooling == 'first' else jnp.mean(hidden, axis=1)


def embed(
    params: Any, config: model_config.TransformerConfig, tokenizer: tokenizers.Tokenizer, texts: Sequence[str], *,
    pooling: str = 'mean', normalized: bool = True, batch_size: int = 32, implementation: str = 'simulated'
) -> np.ndarray:
  """Embeddings of texts.

  Args:
    params, config, pooling, implementation: as for `pooled`.
    tokenizer: its own; puts its special tokens around each text.
    texts: at least one.
    normalized: whether embeddings are divided by their length.
    batch_size: texts evaluated at once.

  Returns:
    float32 [texts, width].

  Raises:
    UserError: the model is no encoder, there is no such pooling, or a text is empty or longer than its context.
  """
  if config.causal:
    raise errors.UserError('sentence embeddings need an encoder, and the model is a decoder')
  if pooling not in POOLINGS:
    raise errors.UserError(f'pooling is {pooling!r}; there are {", ".join(POOLINGS)}')
  encoded = [tokenizer.encode_text(text) for text in texts]
  for text, tokens in zip(texts, encoded):
    if not 1 <= len(tokens) <= config.max_length:
      raise errors.UserError(f'the text {text[:40]!r} has {len(tokens)} tokens; there may be 1 to {config.max_length}')
  made = np.zeros((len(texts), config.width), np.float32)
  for length in sorted({len(tokens) for tokens in encoded}):
    alike = [i for i, tokens in enumerate(encoded) if len(tokens) == length]
    for start in range(0, len(alike), batch_size):
      rows = alike[start : start + batch_size]
      ids = jnp.asarray(np.stack([encoded[i] for i in rows]), jnp.int32)
      made[rows] = pooled(params, ids, config=config, pooling=pooling, implementation=implementation)
  return made / np.linalg.norm(made, axis=-1, keepdims=True) if normalized else made
