"""Generation: a decoder goes on with texts, greedily or by drawing from what it expects."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.data import streaming
from jaxquant.data import tokenizers
from jaxquant.evaluation import batching
from jaxquant.layers import sharding
from jaxquant.models import config as model_config
from jaxquant.models import decoding

ENDED = -1  # in place of a token of a row that has ended


class Sampling(NamedTuple):
  """How the next token is chosen.

  Attributes:
    temperature: logits are divided by it; 0: the likeliest token is taken.
    top_p: tokens are drawn from the fewest that have this probability together (nucleus sampling, arXiv:1904.09751).
  """

  temperature: float = 0.0
  top_p: float = 1.0

  def check(self) -> None:
    """Raises `UserError` for values outside their range."""
    if not 0 <= self.temperature < float('inf'):
      raise errors.UserError(f'a temperature is 0 or a positive number, not {self.temperature}')
    if not 0 < self.top_p <= 1:
      raise errors.UserError(f'top_p is a probability above 0 and at most 1, not {self.top_p}')


def choose(logits, key, sampling: Sampling):
  """The next token of every row, int32 [batch], from logits [batch, vocabulary] of any floating dtype."""
  logits = logits.astype(jnp.float32)
  if sampling.temperature == 0:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  order = jnp.argsort(-logits, axis=-1)
  ranked = jnp.take_along_axis(logits, order, axis=-1)
  # Below the largest one, so that no temperature makes infinities of logits that tokens are drawn from.
  ranked = ranked - ranked[:, :1]
  ranked = jnp.where(ranked == 0, 0, ranked / sampling.temperature)
  probabilities = jax.nn.softmax(ranked, axis=-1)
  before = jnp.cumsum(probabilities, axis=-1) - probabilities
  # What stands before the likeliest token is nothing, so that this one always remains.
  ranked = jnp.where((before < sampling.top_p) | (sampling.top_p == 1), ranked, -jnp.inf)
  keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(len(logits)))
  drawn = jax.vmap(jax.random.categorical)(keys, ranked)
  return jnp.take_along_axis(order, drawn[:, None], axis=-1)[:, 0].astype(jnp.int32)


def stream(
    params: Any, config: model_config.TransformerConfig, prompts: Sequence[Sequence[int]], *, limit: int,
    sampling: Sampling = Sampling(), key=None, stop: Sequence[int] = (), implementation: str = 'simulated',
    burst: int = 1) -> Iterator[np.ndarray]:
  """Goes on with a batch of prompts, a token each at a time.

  Prompts are filled up (evaluation.batching), and so is the cache, so that few programs serve prompts of all lengths.

  Args:
    params: a tree of the decoder, float or quantized.
    config: the decoder.
    prompts: tokens of each row, at least one.
    limit: further tokens of each row, at most.
    sampling: how they are chosen.
    key: of the draws, a JAX key; by default that of seed 0. A row's draws depend on its place in the batch too.
    stop: tokens that end a row.
    implementation: how codes meet codes (layers.linear).
    burst: tokens of a row behind its first that one program generates. What one call costs the host, which may be more
      than a step of a fast model, is then shared by so many steps; rows that end within a burst are gone on with in
      vain.

  Yields:
    int32 [batch], the next token of each row; `ENDED` from the stop token on, which is not given. Ends when all rows
    have ended.

  Raises:
    UserError: there are no prompts; one is empty or, with `limit`, exceeds the model's context; the model is no
      decoder; the sampling is none; a burst has no tokens.
  """
  sampling.check()
  if burst < 1:
    raise errors.UserError(f'a burst is of one token or more, not of {burst}')
  lengths = np.array([len(prompt) for prompt in prompts], np.int32)
  if not (lengths.size and lengths.all()):
    raise errors.UserError('no prompt, or one of no tokens, leaves nothing to go on with')
  if lengths.max() + limit > config.max_length:
    raise errors.UserError(f'a prompt of {lengths.max()} tokens and {limit} further ones exceed the model\'s context '
                           f'length of {config.max_length}')
  slots = min(batching.filled(lengths.max() + limit), config.max_length)
  tokens = batching.rows(prompts, len(prompts), min(batching.filled(lengths.max()), slots))
  cache = decoding.empty(params, config, len(prompts), slots)
  key = jax.random.key(0) if key is None else key
  running = np.ones(len(prompts), bool)
  options = dict(config=config, sampling=sampling, implementation=implementation)
  chosen, cache = begin(params, cache, tokens, lengths, key, **options)
  made = chosen[None]
  for index in range(limit):
    # The first token is a burst of its own.
    place = (index - 1) % burst if index else 0
    if index and not place:
      made, chosen, cache = advance(params, cache, chosen, key, np.int32(index), steps=burst, **options)
    token = np.asarray(made)[place]
    running &= ~np.isin(token, stop)
    if not running.any():
      return
    yield np.where(running, token, ENDED)


def texts(
    params: Any, config: model_config.TransformerConfig, tokenizer: tokenizers.Tokenizer,
    prompts: Sequence[Sequence[int]], *, limit: int, until: Sequence[str] = (), length: int | None = None,
    batch_tokens: int = batching.BATCH_TOKENS, stop: Sequence[int] = (), key=None, **options: Any) -> list[str]:
  """Goes on with prompts until one of the texts `until` occurs, which is cut off with what is behind it.

  Special tokens are no part of the text, but end it where `until` names one.

  Args:
    params, config, limit: as for `stream`.
    tokenizer: the model's.
    prompts: of tokens each; of those that leave no room for `limit` more, the beginning is cut off.
    until: none empty.
    length: tokens that the model sees at most; its `max_length` by default.
    batch_tokens: tokens of a batch, about; the longest prompts come first.
    stop: tokens that end a text, and are no part of it.
    key: as for `stream`; each batch has draws of its own.
    **options: of `stream`.

  Returns:
    The text behind each prompt.

  Raises:
    UserError: as `stream`; or `limit` leaves no room for a prompt.
  """
  length = length or config.max_length
  if limit >= length:
    raise errors.UserError(f'{limit} tokens to generate leave no room for a prompt in the {length} that the model sees')
  prompts = [list(prompt)[limit - length:] for prompt in prompts]
  order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
  made, key = [''] * len(prompts), jax.random.key(0) if key is None else key
  stop = [*stop, *(tokenizer.special[end] for end in until if end in tokenizer.special)]
  while order:
    count = max(1, batch_tokens // (len(prompts[order[0]]) + limit))
    batch, order = order[:count], order[count:]
    streams = [streaming.TextStream(tokenizer, prompts[i], special=False) for i in batch]
    steps = stream(params, config, [prompts[i] for i in batch], limit=limit, stop=stop,
                   key=jax.random.fold_in(key, len(order)), **options)
    for i, text in zip(batch, _joined(streams, steps, until)):
      made[i] = text
  return made


def _joined(streams, steps, until) -> list[str]:
  """The text of each row of `stream`'s steps; reads no further once all have come to an end."""
  made, running = [''] * len(streams), set(range(len(streams)))

  def extend(row, piece):
    made[row] += piece
    if ends := [made[row].index(end) for end in until if end in made[row]]:
      made[row] = made[row][:min(ends)]
      running.discard(row)

  for chosen in steps:
    for row in sorted(running):
      if chosen[row] != ENDED:
        extend(row, streams[row].add(chosen[row]))
    if not running:
      break
  for row in sorted(running):
    extend(row, streams[row].rest())
  return made


_STATIC = ('config', 'sampling', 'implementation')


@functools.partial(jax.jit, static_argnames=_STATIC, donate_argnames='cache')
def begin(params, cache: decoding.Cache, tokens, counts, key, *, config, sampling, implementation):
  """Evaluates prompts; `tokens` and `counts` as in `decoding.extend`, an empty cache, and the others as in `stream`.

  Returns:
    (the token behind each, int32 [batch]; the cache with the prompts).
  """
  logits, cache = decoding.extend(
      params, cache, tokens, counts, config=config, implementation=implementation, first=True)
  return _chosen(logits, key, 0, sampling), cache


@functools.partial(jax.jit, static_argnames=('steps', *_STATIC), donate_argnames='cache')
def advance(params, cache: decoding.Cache, chosen, key, index, *, steps, config, sampling, implementation):
  """Goes on by some tokens, in one program.

  Args:
    params, key, config, sampling, implementation: as for `stream`.
    cache: of what is behind; donated.
    chosen: int32 [batch], the last token of each row, which is not in the cache.
    index: int32, how many tokens have been generated, which `key` is folded with.
    steps: tokens to generate.

  Returns:
    (int32 [steps, batch]; the last of them, [batch]; the cache with `chosen` and all of them but the last).
  """
  def step(carry, index):
    cache, chosen = carry
    logits, cache = decoding.extend(
        params, cache, chosen[:, None], jnp.ones_like(chosen), config=config, implementation=implementation)
    chosen = _chosen(logits, key, index, sampling)
    return (cache, chosen), chosen

  (cache, chosen), made = jax.lax.scan(step, (cache, chosen), index + jnp.arange(steps))
  return made, chosen, cache


def _chosen(logits, key, index, sampling):
  return sharding.constrain_replicated(choose(logits, jax.random.fold_in(key, index), sampling))
