"""A corpus as one flat array of tokens on disk, made once and mapped into memory afterwards.

`corpus.npy` is an ordinary NumPy file, [tokens] of uint16 or uint32. `corpus.json` beside it says how many documents
and bytes of text the tokens stand for, and holds the fingerprint of the text and the tokenizer they were made from: as
long as both stay the same, the file is used again. In a run of several processes, process 0 calls `prepare_files` or
`prepare_documents`, and the others `load` the file after a barrier.
"""

from collections.abc import Iterable, Iterator, Sequence
import hashlib
import json
import os
import pathlib
from typing import BinaryIO, NamedTuple

from absl import logging
import numpy as np

from jaxquant import errors
from jaxquant.data import text as text_lib
from jaxquant.data import tokenizers

# Enters every fingerprint; to be raised when the same sources would give other tokens.
_VERSION = 1


class Changed(errors.UserError):
  """There is a token file of another text, or by another tokenizer."""


class TokenFile(NamedTuple):
  """A tokenized corpus.

  Attributes:
    tokens: read-only memory map [tokens], uint16 or uint32.
    num_documents: the number of documents.
    num_bytes: the length of the text in bytes of UTF-8, end-of-text tokens not counted.
    fingerprint: SHA-256 (hex) of the sources and the tokenizer.
  """

  tokens: np.ndarray
  num_documents: int
  num_bytes: int
  fingerprint: str


def prepare_files(
    paths: text_lib.Paths, tokenizer: tokenizers.Tokenizer, path: str | os.PathLike[str], *, field: str = 'text',
    replace: bool = True) -> TokenFile:
  """Tokenizes text files into the token file `path`, unless it was made from the same contents by the same tokenizer.

  Args:
    paths: text files as `text.read_documents` reads them. They may be larger than memory.
    tokenizer: the tokenizer.
    path: the token file, ending in `.npy`; its directory is created.
    field: the JSON field or Parquet column that holds the text.
    replace: whether a file of other contents or of another tokenizer is made anew.

  Raises:
    errors.UserError: a text file has a mistake (see `text.read_documents`), or `path` cannot be written.
    Changed: the file is not to be replaced.
  """
  text_lib.check_readable(paths)
  paths = text_lib.as_paths(paths)
  digest = hashlib.sha256(field.encode())
  for source in paths:
    with open(source, 'rb') as file:
      digest.update(f'\0{source.suffixes}{source.stat().st_size}\0'.encode())
      digest.update(hashlib.file_digest(file, 'sha256').digest())
  return _prepare(text_lib.read_documents(paths, field=field), digest, tokenizer, pathlib.Path(path), replace)


def prepare_documents(
    documents: Sequence[str], tokenizer: tokenizers.Tokenizer, path: str | os.PathLike[str], *, replace: bool = True
) -> TokenFile:
  """Does for documents in memory what `prepare_files` does for files."""
  digest = hashlib.sha256()
  for document in documents:
    digest.update(hashlib.sha256(document.encode()).digest())
  return _prepare(documents, digest, tokenizer, pathlib.Path(path), replace)


def load(path: str | os.PathLike[str]) -> TokenFile:
  """Maps a token file into memory.

  Raises:
    errors.UserError: the file or the description beside it is missing or damaged.
  """
  path = pathlib.Path(path)
  try:
    description = json.loads(_description_path(path).read_text(encoding='utf-8'))
    tokens = np.load(path, mmap_mode='r', allow_pickle=False)
    token_file = TokenFile(
        tokens, description['num_documents'], description['num_bytes'], description['fingerprint'])
    expected = (description['num_tokens'],), description['dtype']
  except OSError as error:
    raise errors.UserError(f'{error.filename}: the token file cannot be read ({error.strerror}).') from error
  except (EOFError, ValueError, KeyError, TypeError) as error:
    raise errors.UserError(f'{path}: the token file is damaged ({error}); delete it to make it anew.') from error
  if (tokens.shape, tokens.dtype.name) != expected:
    raise errors.UserError(f'{path}: the token file does not fit the description beside it; delete it to make it anew.')
  return token_file


def _prepare(
    documents: Iterable[str], digest: 'hashlib._Hash', tokenizer: tokenizers.Tokenizer, path: pathlib.Path,
    replace: bool) -> TokenFile:
  if path.suffix != '.npy':
    raise errors.UserError(f'{path}: the name of a token file ends in .npy.')
  digest.update(f'{_VERSION}{tokenizer.fingerprint}'.encode())
  fingerprint = digest.hexdigest()
  try:
    token_file = load(path)
  except errors.UserError as error:
    logging.info('Making a token file: %s', error)
  else:
    if token_file.fingerprint == fingerprint:
      return token_file
    if not replace:
      raise Changed(f'{path}: the token file is that of another text or tokenizer.')
  temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      with open(temporary, 'wb') as file:
        description = _write(documents, tokenizer, file) | {'fingerprint': fingerprint}
      # In this order no interruption leaves tokens beside the description of other tokens.
      _description_path(path).unlink(missing_ok=True)
      temporary.rename(path)
      temporary.write_text(json.dumps(description, indent=2) + '\n', encoding='utf-8')
      temporary.rename(_description_path(path))
    finally:
      temporary.unlink(missing_ok=True)
  except OSError as error:
    raise errors.UserError(f'{path}: the token file cannot be written ({error.strerror}).') from error
  logging.info('%s: %d tokens of %d documents.', path, description['num_tokens'], description['num_documents'])
  return load(path)


def _write(documents: Iterable[str], tokenizer: tokenizers.Tokenizer, file: BinaryIO) -> dict[str, int | str]:
  counts = {'num_tokens': 0, 'num_documents': 0, 'num_bytes': 0, 'dtype': tokenizer.dtype.name}

  def counted() -> Iterator[str]:
    for document in documents:
      counts['num_documents'] += 1
      counts['num_bytes'] += len(document.encode())
      yield document

  def write_header():
    header = {'descr': tokenizer.dtype.str, 'fortran_order': False, 'shape': (counts['num_tokens'],)}
    np.lib.format.write_array_header_1_0(file, header)

  # NumPy pads the header so that the first dimension can grow in place, which lets us write it again at the end.
  write_header()
  for tokens in tokenizer.encode_in_batches(counted()):
    counts['num_tokens'] += len(tokens)
    file.write(tokens.data)
  file.seek(0)
  write_header()
  return counts


def _description_path(path: pathlib.Path) -> pathlib.Path:
  return path.with_suffix('.json')
