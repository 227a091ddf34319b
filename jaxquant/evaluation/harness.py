"""A model for lm-evaluation-harness (`pip install 'jaxquant[eval]'`), whose tasks then run on trees of ours:

  lm_eval.simple_evaluate(model=harness.HarnessModel(params, config, tokenizer), tasks=[...])

Likelihoods, rolling likelihoods and generation are those of this package; a local task gives the same numbers as
`evaluation.tasks` does.
"""

from collections.abc import Sequence
from typing import Any

import jax
from lm_eval import utils
from lm_eval.api import model

from jaxquant import errors
from jaxquant.data import tokenizers
from jaxquant.evaluation import batching
from jaxquant.evaluation import generation
from jaxquant.evaluation import likelihood
from jaxquant.models import config as model_config

_DEFAULT_TOKENS = 256  # that a task generates where it does not say how many
_TOKENS = ('max_gen_toks', 'max_new_tokens', 'max_tokens')


class HarnessModel(model.TemplateLM):
  """A decoder, float or quantized, as the harness asks for it.

  Attributes:
    max_length: tokens that the model sees at most.
  """

  def __init__(
      self, params: Any, config: model_config.TransformerConfig, tokenizer: tokenizers.Tokenizer, *,
      length: int | None = None, stop: Sequence[int] = (), batch_tokens: int = batching.BATCH_TOKENS, key=None,
      implementation: str = 'simulated', mesh: jax.sharding.Mesh | None = None):
    """Makes the model.

    Args:
      params: a tree of the decoder.
      config: the decoder.
      tokenizer: its own.
      length: tokens that it sees at most; its `max_length` by default.
      stop: tokens that end what is generated, beside the tokenizer's `end_of_text`.
      batch_tokens: tokens evaluated at once, about.
      key: of the draws of tasks that sample, a JAX key; by default that of seed 0.
      implementation: how codes meet codes (layers.linear).
      mesh: devices to spread likelihoods over; one device without it.

    Raises:
      UserError: the model is an encoder, or the tokenizer has no token that begins or ends a text.
    """
    super().__init__()
    self.max_length = length or config.max_length
    likelihood.check(config, (), self.max_length)
    if tokenizer.end_of_text is None and not tokenizer.start:
      raise errors.UserError('the tokenizer has no token that begins or ends a text, which the harness needs')
    self._params, self._config, self._tokenizer = params, config, tokenizer
    self._stop = sorted({*stop, *(() if tokenizer.end_of_text is None else (tokenizer.end_of_text,))})
    self._batch_tokens, self._key, self._implementation, self._mesh = batch_tokens, key, implementation, mesh

  @property
  def eot_token_id(self) -> int:
    """The token that ends a text, or that begins one where none ends it."""
    end = self._tokenizer.end_of_text
    return self.prefix_token_id if end is None else end

  @property
  def prefix_token_id(self) -> int:
    """The token that stands in for an empty context."""
    return [*self._tokenizer.start, self._tokenizer.end_of_text][0]

  def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
    """The tokens of a text, the tokenizer's special tokens in front unless that is False."""
    del kwargs
    encode = self._tokenizer.encode_bare if add_special_tokens is False else self._tokenizer.encode_prompt
    return encode(string)

  def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **kwargs):
    del disable_tqdm, kwargs
    # A context of blanks alone has no tokens: the harness moves them to the continuation.
    found = self._scored([
        likelihood.Pair(context or [self.prefix_token_id], continuation) for _, context, continuation in requests])
    for (strings, _, _), scored in zip(requests, found):
      self.cache_hook.add_partial('loglikelihood', strings, tuple(scored))
    return [tuple(scored) for scored in found]

  def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
    """Log likelihood of whole texts behind the prefix token, in windows without overlap."""
    del disable_tqdm
    pairs, owners = [], []
    for i, request in enumerate(requests):
      windows = utils.get_rolling_token_windows(
          self.tok_encode(request.args[0], False), self.prefix_token_id, max_seq_len=self.max_length, context_len=1)
      made = [likelihood.Pair(*utils.make_disjoint_window(window)) for window in windows]
      pairs += made
      owners += [i] * len(made)
    totals = [0.0] * len(requests)
    for i, scored in zip(owners, self._scored(pairs)):
      totals[i] += scored.nats
    for request, total in zip(requests, totals):
      self.cache_hook.add_partial('loglikelihood_rolling', request.args, total)
    return totals

  def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
    """What the model goes on with after each context; those that are generated alike at once.

    Raises:
      UserError: a task asks for a way of generation that there is not.
    """
    del disable_tqdm
    made = [''] * len(requests)
    groups: dict[str, list[int]] = {}
    for i, request in enumerate(requests):
      groups.setdefault(repr(sorted(request.args[1].items())), []).append(i)
    for indices in groups.values():
      limit, until, sampling = _options(requests[indices[0]].args[1])
      prompts = [self.tok_encode(requests[i].args[0]) or [self.prefix_token_id] for i in indices]
      texts = generation.texts(
          self._params, self._config, self._tokenizer, prompts, limit=limit, until=until, length=self.max_length,
          batch_tokens=self._batch_tokens, sampling=sampling, key=self._key, stop=self._stop,
          implementation=self._implementation)
      for i, text in zip(indices, texts):
        made[i] = text
        self.cache_hook.add_partial('generate_until', requests[i].args, text)
    return made

  def _scored(self, pairs):
    return likelihood.score(
        self._params, self._config, pairs, length=self.max_length, batch_tokens=self._batch_tokens,
        implementation=self._implementation, mesh=self._mesh)


def _options(asked: dict[str, Any]) -> tuple[int, list[str], generation.Sampling]:
  """(tokens at most, texts that end it, sampling) of the keyword arguments of a task."""
  asked = dict(asked)
  limits = [asked.pop(name) for name in _TOKENS if name in asked]
  until = asked.pop('until', None) or []
  until = [until] if isinstance(until, str) else until
  temperature, top_p = asked.pop('temperature', None), float(asked.pop('top_p', 1.0))
  draws = asked.pop('do_sample', bool(temperature))
  if asked:
    raise errors.UserError(f'a task asks for {next(iter(asked))!r} in generation; there are {", ".join(_TOKENS)}, '
                           'until, do_sample, temperature and top_p')
  sampling = generation.Sampling(1.0 if temperature is None else float(temperature), top_p) if draws else (
      generation.Sampling())
  return limits[0] if limits else _DEFAULT_TOKENS, [end for end in until if end], sampling
