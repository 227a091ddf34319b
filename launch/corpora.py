"""Texts and tokenizers as a configuration names them."""

import pathlib
from typing import Any, NamedTuple

from jax.experimental import multihost_utils
import jax
import numpy as np

from jaxquant import errors
from jaxquant.data import standard_library
from jaxquant.data import text
from jaxquant.data import token_file
from jaxquant.data import tokenizers

STANDARD_LIBRARY = 'standard_library'


class Text(NamedTuple):
  """A text to score: its tokens by the evaluation protocol, and its length in UTF-8 bytes."""

  name: str
  tokens: np.ndarray
  num_bytes: int


class Corpus(NamedTuple):
  """What a run trains and reports on."""

  tokenizer: tokenizers.Tokenizer
  train: np.ndarray
  validation: tuple[Text, ...]


def check(data: Any) -> None:
  """Raises `UserError` for sources that are missing or unreadable, before any long work."""
  if not data.train:
    raise errors.UserError('config.data.train is empty: name one or more text files, or standard_library')
  for sources in (_sources(data.train), *(_sources(value) for value in data.validation.values())):
    if sources != (STANDARD_LIBRARY,):
      text.check_readable(sources)
  if data.tokenizer:
    text.check_readable((data.tokenizer,))


def load(data: Any, vocabulary: int, folder: pathlib.Path, training_length: int, batch_size: int) -> Corpus:
  """Reads, tokenizes and caches the texts of a configuration.

  Args:
    data: `config.data`.
    vocabulary: entries of a tokenizer to train; ignored where one is named.
    folder: the workdir; `tokenizer.json` and `tokens/` are written there by process 0 and reused.
    training_length: tokens predicted in a sequence.
    batch_size: sequences of a global batch.

  Returns:
    The Corpus.

  Raises:
    UserError: unusable texts, or too few tokens for one batch.
  """
  tokens_path = folder / 'tokens' / 'train.npy'
  if jax.process_index() == 0:
    tokens_path.parent.mkdir(parents=True, exist_ok=True)
    _prepare(data, vocabulary, folder, tokens_path)
  multihost_utils.sync_global_devices('jaxquant.corpora')
  tokenizer = tokenizers.Tokenizer.load(folder)
  train = token_file.load(tokens_path).tokens
  needed = training_length * batch_size + 1
  if len(train) < needed:
    raise errors.UserError(f'the training text has {len(train)} tokens, fewer than one batch of {needed}')
  return Corpus(tokenizer, train, tuple(
      read_text(name, _sources(value), tokenizer, data.field) for name, value in data.validation.items()))


def _prepare(data, vocabulary, folder, tokens_path):
  sources = _sources(data.train)
  local = sources == (STANDARD_LIBRARY,)
  documents = lambda: standard_library.documents('train') if local else text.read_documents(sources, field=data.field)
  if not (folder / 'tokenizer.json').exists():
    tokenizer = tokenizers.Tokenizer.load(data.tokenizer) if data.tokenizer else tokenizers.Tokenizer.train(
        documents(), vocabulary)
    tokenizer.save(folder / 'tokenizer.json')
  tokenizer = tokenizers.Tokenizer.load(folder)
  if local:
    token_file.prepare_documents(documents(), tokenizer, tokens_path)
  else:
    token_file.prepare_files(sources, tokenizer, tokens_path, field=data.field)


def read_text(name: str, sources: tuple[str, ...], tokenizer: tokenizers.Tokenizer, field: str = 'text') -> Text:
  """A text to score, tokenized by the evaluation protocol (data.tokenizers)."""
  if sources == (STANDARD_LIBRARY,):
    content = text.join_documents(standard_library.documents('validation'))
  else:
    content = text.read_text(sources, field=field)
  return Text(name, tokenizer.encode_text(content), len(content.encode('utf-8')))


def _sources(value) -> tuple[str, ...]:
  return (value,) if isinstance(value, str) else tuple(value)
