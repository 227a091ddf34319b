"""Tokenizers: trained here as byte-level BPE, or loaded from any `tokenizer.json`.

Token ids are integers in [0, vocab_size). Arrays of them are uint16 if the vocabulary allows it and uint32 otherwise.
"""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import functools
import hashlib
import itertools
import os
import pathlib
import re

from absl import logging
import numpy as np
import tokenizers

from jaxquant import errors
from jaxquant.data import text as text_lib

_END_OF_TEXT_NAMES = (text_lib.END_OF_TEXT, '</s>', '<|end_of_text|>', '<eos>')
_END_OF_TEXT_LINE = re.compile(rf'^{re.escape(text_lib.END_OF_TEXT)}\r?(?:\n|\Z)', re.MULTILINE)

# Long texts are cut where whitespace begins. The pattern of GPT-2 ends a word at every such place and then looks no
# further back, so the cut does not show. Because this need not hold for other tokenizers, each cut is tried first.
_CUT = re.compile(r'(?<=\S)(?=[ \n])')
_PIECE_CHARACTERS = 1 << 15
_CONTEXT_CHARACTERS = 1 << 7
_BATCH_CHARACTERS = 1 << 22


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """A tokenizer. Make one with `Tokenizer.train` or `Tokenizer.load`; it does not change afterwards.

  Attributes:
    backend: the tokenizer of the Hugging Face `tokenizers` library that does the work.
  """

  backend: tokenizers.Tokenizer

  @classmethod
  def train(cls, documents: Iterable[str], vocab_size: int) -> 'Tokenizer':
    """Trains byte-level BPE (Radford et al., 2019, section 2.2) with the one special token `<|endoftext|>`.

    The alphabet is all 256 bytes, so every text can be encoded and decoded without loss. The result depends on the
    documents and `vocab_size` alone. A corpus too small for `vocab_size` gives a smaller vocabulary and a warning.

    Args:
      documents: the training text.
      vocab_size: the number of tokens: 256 bytes, `<|endoftext|>`, and the merges.

    Raises:
      errors.UserError: `vocab_size` leaves no room for a merge, or the documents hold nothing to merge.
    """
    check_vocab_size(vocab_size)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, special_tokens=[text_lib.END_OF_TEXT], initial_alphabet=alphabet,
        show_progress=False)
    pieces = itertools.chain.from_iterable(_pieces(document, lambda left, right: True) for document in documents)
    backend.train_from_iterator(pieces, trainer)
    size = backend.get_vocab_size()
    if size == len(alphabet) + 1:
      raise errors.UserError('There is nothing to train a tokenizer on: no two characters occur together twice.')
    if size < vocab_size:
      logging.warning('The text gives a vocabulary of only %d of the %d tokens asked for.', size, vocab_size)
    return cls(backend)

  @classmethod
  def load(cls, path: str | os.PathLike[str]) -> 'Tokenizer':
    """Loads a `tokenizer.json`, or the one in the directory `path`.

    Truncation and padding stored in the file are turned off: the text is always encoded whole.

    Raises:
      errors.UserError: the file is missing or is no tokenizer.
    """
    path = pathlib.Path(path)
    if path.is_dir():
      path = path / 'tokenizer.json'
    try:
      content = path.read_text(encoding='utf-8')
    except OSError as error:
      raise errors.UserError(f'{path}: the tokenizer cannot be read ({error.strerror}).') from error
    except UnicodeDecodeError as error:
      raise errors.UserError(f'{path}: not a tokenizer.json (byte {error.start} is not UTF-8).') from error
    try:
      backend = tokenizers.Tokenizer.from_str(content)
    except Exception as error:  # The library raises this bare class.
      raise errors.UserError(f'{path}: not a tokenizer.json ({" ".join(str(error).split())}).') from error
    backend.no_truncation()
    backend.no_padding()
    return cls(backend)

  def save(self, path: str | os.PathLike[str]) -> None:
    """Writes a `tokenizer.json` that `load`, and every other user of the format, reads."""
    path = pathlib.Path(path)
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(self.backend.to_str(pretty=True), encoding='utf-8')
    except OSError as error:
      raise errors.UserError(f'{path}: the tokenizer cannot be written ({error.strerror}).') from error

  @functools.cached_property
  def vocab_size(self) -> int:
    """One more than the largest token id: the number of rows that an embedding needs."""
    return 1 + max(self.backend.get_vocab(with_added_tokens=True).values())

  @functools.cached_property
  def end_of_text(self) -> int | None:
    """The id of the token that ends a document, or None where the vocabulary has none by a usual name."""
    ids = map(self.backend.token_to_id, _END_OF_TEXT_NAMES)
    return next((token for token in ids if token is not None), None)

  @functools.cached_property
  def dtype(self) -> np.dtype:
    """The dtype of token arrays: uint16 if every id fits, else uint32."""
    return np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)

  @functools.cached_property
  def fingerprint(self) -> str:
    """SHA-256 (hex) of everything that determines how text is encoded."""
    return hashlib.sha256(self.backend.to_str().encode()).hexdigest()

  def encode_documents(self, documents: Iterable[str]) -> np.ndarray:
    """Encodes documents for training: [tokens], each followed by `end_of_text` where there is one."""
    return np.concatenate([np.empty(0, self.dtype), *self.encode_in_batches(documents)])

  def encode_in_batches(self, documents: Iterable[str]) -> Iterator[np.ndarray]:
    """Yields the result of `encode_documents` as consecutive arrays [tokens]; the corpus need not fit in memory."""
    end = [] if self.end_of_text is None else [self.end_of_text]
    batch, characters = [], 0
    for document in documents:
      pieces = self._pieces(document)
      for index, piece in enumerate(pieces):
        batch.append((piece, end if index + 1 == len(pieces) else []))
        characters += len(piece)
        if characters >= _BATCH_CHARACTERS:
          yield self._encode_batch(batch)
          batch, characters = [], 0
    yield self._encode_batch(batch)

  def encode_text(self, text: str) -> np.ndarray:
    """Encodes a text for evaluation: [tokens]. Perplexities are comparable between runs that share this protocol.

    The whole text is encoded once, with the special tokens that the tokenizer itself puts around a text. A line that
    is exactly `<|endoftext|>` becomes, newline included, the one token `end_of_text`; a tokenizer without such a token
    sees the line as text. Special tokens spelled out elsewhere in the text are recognized as the tokenizer does it.
    """
    documents = [text] if self.end_of_text is None else _END_OF_TEXT_LINE.split(text)
    tokens = self.encode_documents(documents)
    if self.end_of_text is not None:
      tokens = tokens[:-1]
    before, after = (np.array(ids, self.dtype) for ids in self._special_tokens_around())
    return np.concatenate([before, tokens, after])

  def encode_prompt(self, text: str) -> list[int]:
    """Encodes the beginning of a text, which is to go on: special tokens in front as for `encode_text`, none behind.

    A text that spells out these special tokens itself is not given them twice.
    """
    before, tokens = self.start, self.encode_bare(text)
    return tokens if before and tokens[:len(before)] == before else before + tokens

  def encode_bare(self, text: str) -> list[int]:
    """Encodes a text without special tokens around it; those that it spells out are recognized."""
    return self.backend.encode(text, add_special_tokens=False).ids

  @functools.cached_property
  def start(self) -> list[int]:
    """The special tokens that the tokenizer puts in front of a text, often one or none."""
    return self._special_tokens_around()[0]

  @functools.cached_property
  def special(self) -> dict[str, int]:
    """The ids of special tokens, by their text."""
    return {token.content: i for i, token in self.backend.get_added_tokens_decoder().items() if token.special}

  def decode(self, ids: np.ndarray, special: bool = True) -> str:
    """Returns the text of token ids [tokens], with special tokens or without."""
    return self.backend.decode(np.asarray(ids).tolist(), skip_special_tokens=not special)

  def _encode_batch(self, batch: list[tuple[str, list[int]]]) -> np.ndarray:
    """Encodes pieces of text, each with the token ids that follow it, into one array [tokens]."""
    encodings = self.backend.encode_batch_fast([piece for piece, _ in batch], add_special_tokens=False)
    parts = [np.array(encoding.ids + end, self.dtype) for encoding, (_, end) in zip(encodings, batch)]
    return np.concatenate([np.empty(0, self.dtype), *parts])

  def _special_tokens_around(self) -> tuple[list[int], list[int]]:
    encoding = self.backend.encode('a', add_special_tokens=True)
    positions = [position for position, special in enumerate(encoding.special_tokens_mask) if not special]
    first, last = (positions[0], positions[-1]) if positions else (len(encoding), len(encoding))
    return encoding.ids[:first], encoding.ids[last + 1:]

  def _pieces(self, text: str) -> list[str]:
    """Cuts a text into pieces whose encodings, joined, are the encoding of the text."""
    return list(_pieces(text, self._separable)) if self._cuttable else [text]

  @functools.cached_property
  def _cuttable(self) -> bool:
    return self._separable('one two', ' three')

  def _separable(self, left: str, right: str) -> bool:
    whole, left, right = (
        self.backend.encode(part, add_special_tokens=False).ids for part in (left + right, left, right))
    return whole == left + right


def check_vocab_size(vocab_size: int) -> None:
  """Raises `UserError` for a vocabulary that has no room for what `Tokenizer.train` begins with, and a merge."""
  if vocab_size <= (start := len(tokenizers.pre_tokenizers.ByteLevel.alphabet()) + 1):
    raise errors.UserError(f'A vocabulary of {vocab_size} tokens is too small: the bytes and {text_lib.END_OF_TEXT} '
                           f'alone take {start}.')


def _pieces(text: str, separable: Callable[[str, str], bool]) -> Iterator[str]:
  start, search_from = 0, _PIECE_CHARACTERS
  while match := _CUT.search(text, search_from):
    cut = match.start()
    if separable(text[max(start, cut - _CONTEXT_CHARACTERS):cut], text[cut:cut + _CONTEXT_CHARACTERS]):
      yield text[start:cut]
      start, search_from = cut, cut + _PIECE_CHARACTERS
    else:
      search_from = cut + 1
  yield text[start:]
