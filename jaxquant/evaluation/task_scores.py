"""What a decoder scores on a task.

  multiple choice           accuracy: how often the likeliest choice is the answer; normalized_accuracy: how often the
                            likeliest per byte of its text is, since longer ones are less likely for that alone
  last word, continuation   accuracy: how often the likeliest tokens are the continuation; perplexity of the
                            continuations, a continuation and not a token counting as one
  generation                accuracy: how often what is generated greedily is the answer, blanks around both aside
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxquant import errors
from jaxquant.data import tokenizers
from jaxquant.evaluation import batching
from jaxquant.evaluation import generation
from jaxquant.evaluation import likelihood
from jaxquant.evaluation import tasks
from jaxquant.models import config as model_config


def encode(task: tasks.Task, tokenizer: tokenizers.Tokenizer) -> list[likelihood.Pair]:
  """The tokens of all continuations of a task, one after the other; raises `UserError` naming the task.

  Where the continuation is generated, its own are left out, and the context stands as it is, blanks at its end too.
  """
  try:
    if task.kind == tasks.GENERATION:
      contexts = [tokenizer.encode_prompt(example.context) for example in task.examples]
      if [] in contexts:
        raise errors.UserError('a context is empty, and the tokenizer has no token that begins a text')
      return [likelihood.Pair(context, []) for context in contexts]
    return [likelihood.encode_pair(tokenizer, example.context, continuation)
            for example in task.examples for continuation in example.continuations]
  except errors.UserError as error:
    raise errors.UserError(f'task {task.name}: {error}') from error


def check(
    config: model_config.TransformerConfig, task: tasks.Task, pairs: Sequence[likelihood.Pair], length: int) -> None:
  """Raises `UserError` where `score` would: the model is an encoder, or the `length` that it sees does not suffice."""
  try:
    likelihood.check(config, pairs, length)
    if task.kind == tasks.GENERATION and (tokens := max(example.tokens for example in task.examples)) >= length:
      raise errors.UserError(f'{tokens} tokens to generate leave no room in the {length} that the model sees')
  except errors.UserError as error:
    raise errors.UserError(f'task {task.name}: {error}') from error


def score(
    params: Any, config: model_config.TransformerConfig, tokenizer: tokenizers.Tokenizer, task: tasks.Task,
    pairs: Sequence[likelihood.Pair], *, length: int | None = None, stop: Sequence[int] = (),
    batch_tokens: int = batching.BATCH_TOKENS, implementation: str = 'simulated',
    mesh: jax.sharding.Mesh | None = None) -> dict[str, Any]:
  """Scores a task.

  Args:
    params: a tree of the decoder, float or quantized.
    config: the decoder.
    tokenizer: its own.
    task: the examples.
    pairs: their tokens, from `encode`.
    length: tokens that the model sees at most; its `max_length` by default.
    stop: tokens that end what is generated.
    batch_tokens: tokens evaluated at once, about.
    implementation: how codes meet codes (layers.linear).
    mesh: devices to spread likelihoods over; one device without it.

  Returns:
    `examples`, `accuracy`, `accuracy_error` (standard error of the mean; NaN for one example), and what else is
    measured.

  Raises:
    UserError: as `check`.
  """
  check(config, task, pairs, length or config.max_length)
  options = {'length': length, 'batch_tokens': batch_tokens, 'implementation': implementation}
  if task.kind == tasks.GENERATION:
    return _summary(_generated(params, config, tokenizer, task, pairs, {**options, 'stop': stop}))
  return metrics(task, likelihood.score(params, config, pairs, mesh=mesh, **options))


def metrics(task: tasks.Task, likelihoods: Sequence[likelihood.Likelihood]) -> dict[str, Any]:
  """The scores, as `score` returns them, of a task without generation, from the likelihoods of its pairs."""
  remaining, right, normalized, nats = iter(likelihoods), [], [], 0.0
  for example in task.examples:
    found = [next(remaining) for _ in example.continuations]
    if task.kind == tasks.CHOICE:
      values = np.array([each.nats for each in found])
      sizes = np.array([len(continuation.encode()) for continuation in example.continuations])
      right.append(int(np.argmax(values)) == example.answer)
      normalized.append(int(np.argmax(values / sizes)) == example.answer)
    else:
      right.append(found[0].greedy)
      nats -= found[0].nats
  if task.kind == tasks.CHOICE:
    return {**_summary(right), 'normalized_accuracy': float(np.mean(normalized))}
  mean = nats / len(right)
  return {**_summary(right), 'perplexity': math.exp(mean) if mean < 700 else math.inf}


def _summary(right: Sequence[bool]) -> dict[str, Any]:
  error = float(np.std(right, ddof=1) / len(right) ** 0.5) if len(right) > 1 else math.nan
  return {'examples': len(right), 'accuracy': float(np.mean(right)), 'accuracy_error': error}


def _generated(params, config, tokenizer, task, pairs, options) -> list[bool]:
  """Whether each answer is generated; examples with the same ends and tokens are generated at once."""
  right, groups = [False] * len(pairs), {}
  for i, example in enumerate(task.examples):
    groups.setdefault((example.until, example.tokens), []).append(i)
  for (until, tokens), indices in groups.items():
    made = generation.texts(params, config, tokenizer, [pairs[i].context for i in indices], limit=tokens, until=until,
                            **options)
    for i, text in zip(indices, made):
      right[i] = text.strip() == task.examples[i].continuations[0].strip()
  return right
