"""Texts and tokenizers as a configuration names them."""

import contextlib
import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxquant import errors
from jaxquant.data import standard_library
from jaxquant.data import text
from jaxquant.data import token_file
from jaxquant.data import tokenizers
from launch import agreement

STANDARD_LIBRARY = 'standard_library'


class Text(NamedTuple):
  """A text to score: its tokens by the evaluation protocol, and its length in UTF-8 bytes."""

  name: str
  tokens: np.ndarray
  num_bytes: int


class Corpus(NamedTuple):
  """What a run trains and reports on; `fingerprint` is that of the training tokens."""

  tokenizer: tokenizers.Tokenizer
  train: np.ndarray
  fingerprint: str
  validation: tuple[Text, ...]


def check(data: Any, tokenizer: str, vocabulary: int) -> None:
  """Raises `UserError` for sources that are missing or unreadable, and for a tokenizer that does not fit the model.

  Args:
    data: `config.data`.
    tokenizer: a tokenizer.json or the directory of one; empty where one is to be trained.
    vocabulary: rows of the model's embedding.
  """
  if not data.validation:
    raise errors.UserError('config.data.validation names no text to report on')
  with _naming('config.data.train'):
    _check_readable(data.train)
  for name in data.validation:
    with _naming(f'config.data.validation.{name}'):
      _check_readable(data.validation[name])
      # To the end, unlike the training text: these are short, and read for the first time after the training text.
      for _ in _documents(data.validation[name], 'validation', data.field):
        pass
  if not tokenizer:
    with _naming('config.model.vocabulary'):
      tokenizers.check_vocab_size(vocabulary)
  elif (size := tokenizers.Tokenizer.load(tokenizer).vocab_size) > vocabulary:
    raise errors.UserError(
        f'the tokenizer {tokenizer} has {size} tokens, more than config.model.vocabulary, {vocabulary}')


def load(data: Any, tokenizer: str, vocabulary: int, folder: pathlib.Path, batch_tokens: int,
         report: Callable[[str], None], replace: bool = True) -> Corpus:
  """Reads, tokenizes and caches the texts of a configuration.

  Args:
    data, tokenizer, vocabulary: as for `check`; a tokenizer of `vocabulary` entries is trained where none is named.
    folder: the workdir; `tokenizer.json` and `tokens/` are written there by process 0 and reused.
    batch_tokens: tokens that a global batch predicts.
    report: called with a line on a text that is too small for the vocabulary.
    replace: whether tokens of another text are made anew; not where a model was trained on them, as calibrations read
      them.

  Returns:
    The Corpus.

  Raises:
    UserError: unusable texts, too few tokens for one batch, or another text than that of the tokens that stay.
  """
  path = folder / 'tokens' / 'train.npy'
  agreement.agree(lambda: jax.process_index() or _prepare(data, tokenizer, vocabulary, folder, path, replace))
  corpus = agreement.agree(lambda: _load(data, folder, path, batch_tokens))
  if not tokenizer and corpus.tokenizer.vocab_size < vocabulary:
    report(f'config.data.train is too small a text for the {vocabulary} tokens of config.model.vocabulary: '
           f'its tokenizer has {corpus.tokenizer.vocab_size}')
  return corpus


def read_text(name: str, sources: tuple[str, ...], tokenizer: tokenizers.Tokenizer, field: str = 'text') -> Text:
  """A text to score, tokenized by the protocol of evaluation (data.tokenizers); `UserError` if nothing is in it."""
  content = text.join_documents(_documents(sources, 'validation', field))
  tokens = tokenizer.encode_text(content)
  if len(tokens) < 2:
    raise errors.UserError(f'{", ".join(sources)}: a single token leaves none to predict')
  return Text(name, tokens, len(content.encode('utf-8')))


def another_text(folder: pathlib.Path) -> errors.UserError:
  """The mistake of a workdir's training that is continued with another text."""
  return errors.UserError(f'config.data.train is another text than {folder} was trained on so far')


def _prepare(data, tokenizer, vocabulary, folder, path, replace):
  documents = functools.partial(_documents, data.train, 'train', data.field)
  saved = folder / 'tokenizer.json'
  if not saved.exists():
    if tokenizer:
      made = tokenizers.Tokenizer.load(tokenizer)
    else:
      with _naming('config.data.train'):
        made = tokenizers.Tokenizer.train(documents(), vocabulary)
    # At once, or a launch that is killed meanwhile would leave half a file to the next.
    partial = saved.with_name('tokenizer.json.partial')
    made.save(partial)
    os.replace(partial, saved)
  loaded = tokenizers.Tokenizer.load(saved)
  try:
    if _sources(data.train) == (STANDARD_LIBRARY,):
      token_file.prepare_documents(documents(), loaded, path, replace=replace)
    else:
      token_file.prepare_files(_sources(data.train), loaded, path, field=data.field, replace=replace)
  except token_file.Changed:
    raise another_text(folder) from None


def _load(data, folder, path, batch_tokens) -> Corpus:
  tokenizer = tokenizers.Tokenizer.load(folder)
  tokens, _, _, fingerprint = token_file.load(path)
  if len(tokens) <= batch_tokens:
    raise errors.UserError(
        f'config.data.train has {len(tokens)} tokens, fewer than the {batch_tokens + 1} of one batch')
  return Corpus(tokenizer, tokens, fingerprint, tuple(
      read_text(name, _sources(data.validation[name]), tokenizer, data.field) for name in data.validation))


def _check_readable(value):
  if _sources(value) != (STANDARD_LIBRARY,):
    text.check_readable(_sources(value))


def _documents(value, split, field):
  if _sources(value) == (STANDARD_LIBRARY,):
    return standard_library.documents(split)
  return text.read_documents(_sources(value), field=field)


def _sources(value) -> tuple[str, ...]:
  return (value,) if isinstance(value, str) else tuple(value)


@contextlib.contextmanager
def _naming(key):
  try:
    yield
  except errors.UserError as error:
    raise errors.UserError(f'{key}: {error}') from error
