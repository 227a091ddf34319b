"""How likely a decoder finds a continuation of a context, and whether it would have chosen it: what tasks score.

Protocol, that of lm-evaluation-harness: context and continuation are tokenized together, and the tokens beyond those of
the context alone are the continuation's; blanks that end the context count to the continuation, where tokens begin with
them. Special tokens that the tokenizer puts in front stand there, and make a context of an empty one. What exceeds the
model's context length is cut off from the left.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxquant import compilation
from jaxquant import errors
from jaxquant.data import tokenizers
from jaxquant.evaluation import batching
from jaxquant.layers import sharding
from jaxquant.models import config as model_config
from jaxquant.models import staging
from jaxquant.training import losses


class Likelihood(NamedTuple):
  """Of a continuation.

  Attributes:
    nats: its log likelihood, negative.
    greedy: whether each of its tokens is the likeliest one.
  """

  nats: float
  greedy: bool


class Pair(NamedTuple):
  """Tokens of a context, at least one, and of its continuation, at least one."""

  context: list[int]
  continuation: list[int]


def encode_pair(tokenizer: tokenizers.Tokenizer, context: str, continuation: str) -> Pair:
  """Tokenizes a context, perhaps empty, and its continuation.

  Raises:
    UserError: the continuation has no tokens, or nothing stands before it: the context is empty and the tokenizer has
      no token that begins or ends a text.
  """
  blanks = len(context) - len(context.rstrip())
  if blanks:
    context, continuation = context[:-blanks], context[-blanks:] + continuation
  before, whole = tokenizer.encode_prompt(context), tokenizer.encode_prompt(context + continuation)
  if not before:
    if tokenizer.end_of_text is None:
      raise errors.UserError(f'nothing stands before {continuation[:40]!r}: its context is empty, and the tokenizer '
                             'has no token that begins or ends a text')
    before, whole = [tokenizer.end_of_text], [tokenizer.end_of_text, *whole]
  pair = Pair(before, whole[len(before):])
  if not pair.continuation:
    raise errors.UserError(f'the continuation {continuation[:40]!r} has no tokens of its own')
  return pair


def check(config: model_config.TransformerConfig, pairs: Sequence[Pair], length: int) -> None:
  """Raises `UserError` for an encoder, an empty context, or a continuation that exceeds the `length` that it sees."""
  if not config.causal:
    raise errors.UserError('an encoder has no likelihood of a continuation; tasks need a decoder')
  if not all(pair.context for pair in pairs):
    raise errors.UserError('a context has no tokens, so that nothing stands before its continuation')
  longest = max((len(pair.continuation) for pair in pairs), default=0)
  if longest > length:
    raise errors.UserError(f'a continuation of {longest} tokens exceeds the {length} that the model sees')


def score(
    params: Any, config: model_config.TransformerConfig, pairs: Sequence[Pair], *, length: int | None = None,
    batch_tokens: int = batching.BATCH_TOKENS, implementation: str = 'simulated', mesh: jax.sharding.Mesh | None = None
) -> list[Likelihood]:
  """Scores continuations, those of like lengths at once.

  Args:
    params: a tree of the decoder, float or quantized.
    config: the decoder.
    pairs: as `encode_pair` makes them.
    length: tokens that the model sees at most; its `max_length` by default.
    batch_tokens: tokens evaluated at once, about.
    implementation: how codes meet codes (layers.linear).
    mesh: devices to spread the texts over; one device without it.

  Returns:
    A Likelihood for each pair, in their order.

  Raises:
    UserError: as `check`.
  """
  length = length or config.max_length
  check(config, pairs, length)
  # The last token is predicted and not read.
  texts = [(pair.context + pair.continuation)[-length - 1:] for pair in pairs]
  made: dict[int, Likelihood] = {}
  for indices, count, width in batching.by_length([len(text) - 1 for text in texts], length, batch_tokens):
    tokens = batching.rows([texts[i] for i in indices], count, width + 1)
    scored = np.zeros((count, width), bool)
    for row, i in zip(scored, indices):
      row[len(texts[i]) - 1 - len(pairs[i].continuation) : len(texts[i]) - 1] = True
    if mesh is not None:
      tokens, scored = sharding.place_whole(mesh, tokens), sharding.place_whole(mesh, scored)
    nats, greedy = _likelihoods(params, tokens, scored, config=config, implementation=implementation)
    made.update(zip(indices, map(Likelihood, np.asarray(nats).tolist(), np.asarray(greedy).tolist())))
  return [made[i] for i in range(len(pairs))]


@functools.partial(compilation.jit, static_argnames=('config', 'implementation'))
def _likelihoods(params, tokens, scored, *, config, implementation):
  """(log likelihood, float32 [rows], whether all are the likeliest, bool [rows]) of the scored tokens of each row."""
  inputs, targets = tokens[:, :-1], tokens[:, 1:]
  logits = staging.make(config, implementation).apply({'params': params}, inputs)
  nats = jnp.where(scored, losses.cross_entropy(logits, targets), 0.0)
  likeliest = (jnp.argmax(logits, axis=-1) == targets) | ~scored
  return sharding.constrain_replicated((-jnp.sum(nats, axis=-1), jnp.all(likeliest, axis=-1)))
