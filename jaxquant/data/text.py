"""Documents out of local text files.

A file holds documents in one of three ways, told apart by its name:

  *.parquet         one document a row, in a column of strings
  *.jsonl, *.json   one JSON object a line, the document in one of its fields
  anything else     plain text; a line that is exactly `<|endoftext|>` ends a document

Plain text and JSON Lines may be compressed (`.xz` or `.gz` after the name). All text is UTF-8. A document is returned
as it stands in the file, its newlines included; documents without a visible character are left out.
"""

import codecs
from collections.abc import Iterable, Iterator, Sequence
import contextlib
import gzip
import json
import lzma
import os
import pathlib
from typing import Any, BinaryIO
import zlib

from jaxquant import errors

END_OF_TEXT = '<|endoftext|>'

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

_OPENERS = {'.gz': gzip.open, '.xz': lzma.open}
_CHECKED_BYTES = 1 << 16


def read_documents(paths: Paths, *, field: str = 'text') -> Iterator[str]:
  """Yields the documents of one file or of several, in order.

  Args:
    paths: a file or a sequence of files.
    field: the JSON field or Parquet column that holds the text. Plain text has no use for it.

  Yields:
    The documents, as strings. Never more than one document or one batch of Parquet rows is held in memory.

  Raises:
    errors.UserError: a file is missing, unreadable, damaged, not UTF-8 or without text; a line is not a JSON object;
      the field is missing or no string. The message names the file and the line, row or byte.
  """
  for path in as_paths(paths):
    empty = True
    for document in _reader(path)(path, field):
      if document.strip():
        empty = False
        yield document
    if empty:
      raise errors.UserError(f'{path}: the file holds no text.')


def read_text(paths: Paths, *, field: str = 'text') -> str:
  """Returns the documents of `paths` as one string, a line `<|endoftext|>` between any two of them.

  For a plain text file this is the text of the file. Arguments and errors are those of `read_documents`.
  """
  return join_documents(read_documents(paths, field=field))


def join_documents(documents: Iterable[str]) -> str:
  """Joins documents into one string, each but the last ending in a newline and followed by a line `<|endoftext|>`."""
  documents = list(documents)
  parts = []
  for document in documents[:-1]:
    parts += [document, '' if document.endswith('\n') else '\n', END_OF_TEXT, '\n']
  return ''.join(parts + documents[-1:])


def check_readable(paths: Paths) -> None:
  """Looks at the beginning of every file, so that a mistake shows before long work and not after it.

  Raises:
    errors.UserError: a file is missing, unreadable, empty or damaged, or its first 64 KiB are not what the name says.
  """
  for path in as_paths(paths):
    with _open(path) as file:
      head = file.read(_CHECKED_BYTES)
    if not head:
      raise errors.UserError(f'{path}: the file holds no text.')
    if _reader(path) is _parquet_documents:
      with _open_parquet(path):
        pass
    else:
      _decode(head, path, final=len(head) < _CHECKED_BYTES)


def as_paths(paths: Paths) -> list[pathlib.Path]:
  """Returns one path or a sequence of paths as a list. Raises `errors.UserError` when it is empty."""
  if isinstance(paths, (str, os.PathLike)):
    paths = [paths]
  if not paths or not all(map(os.fspath, paths)):
    raise errors.UserError('No text file was named; give the path of at least one.')
  return [pathlib.Path(path) for path in paths]


def _reader(path: pathlib.Path):
  stem = path.stem if path.suffix in _OPENERS else path.name
  kind = pathlib.Path(stem).suffix
  if kind == '.parquet':
    return _parquet_documents
  return _json_documents if kind in ('.jsonl', '.json') else _plain_documents


def _plain_documents(path: pathlib.Path, field: str) -> Iterator[str]:
  del field
  with _open(path) as file:
    lines, start, position = [], 0, 0
    for line in file:
      position += len(line)
      if line.rstrip(b'\r\n') == END_OF_TEXT.encode():
        yield _decode(b''.join(lines), path, start)
        lines, start = [], position
      else:
        lines.append(line)
    yield _decode(b''.join(lines), path, start)


def read_records(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (where it stands, the object) for every line of a JSON Lines file that is not blank.

  Raises:
    errors.UserError: the file is missing, unreadable, damaged or not UTF-8, or a line is not a JSON object.
  """
  position = 0
  with _open(path) as file:
    for number, line in enumerate(file, start=1):
      where = f'{path}:{number}'
      content = _decode(line, where, position)
      position += len(line)
      if not content.strip():
        continue
      try:
        record = json.loads(content)
      except json.JSONDecodeError as error:
        raise errors.UserError(f'{where}: the line is not valid JSON ({error.msg}, column {error.colno}).') from error
      except (ValueError, RecursionError) as error:  # a number or a nesting beyond the limits of Python
        raise errors.UserError(f'{where}: the line cannot be read ({error}).') from error
      if not isinstance(record, dict):
        raise errors.UserError(f'{where}: the line is not a JSON object.')
      yield where, record


def string_of(record: dict[str, Any], where: str, field: str) -> str:
  """The text in a field of a record that stands at `where`; raises `errors.UserError` if there is none."""
  if field not in record:
    raise errors.UserError(f'{where}: there is no field {field!r}; the fields are {", ".join(record) or "none"}.')
  return as_text(record[field], where, field)


def as_text(value: Any, where: str, field: str) -> str:
  """The value of a field as a text; raises `errors.UserError` if it is none."""
  if not isinstance(value, str):
    raise errors.UserError(f'{where}: the field {field!r} is {type(value).__name__}, not a string.')
  try:
    value.encode()
  except UnicodeEncodeError as error:
    raise errors.UserError(f'{where}: the field {field!r} holds half a surrogate pair, which is no text.') from error
  return value


def _json_documents(path: pathlib.Path, field: str) -> Iterator[str]:
  return (string_of(record, where, field) for where, record in read_records(path))


def _parquet_documents(path: pathlib.Path, field: str) -> Iterator[str]:
  with _open_parquet(path) as file:
    columns = file.schema_arrow.names
    if field not in columns:
      raise errors.UserError(f'{path}: there is no column {field!r}; the columns are {", ".join(columns)}.')
    row = 0
    for batch in file.iter_batches(columns=[field]):
      for value in batch.column(0).to_pylist():
        row += 1
        yield as_text(value, f'{path}, row {row}', field)


@contextlib.contextmanager
def _open(path: pathlib.Path) -> Iterator[BinaryIO]:
  try:
    with _OPENERS.get(path.suffix, open)(path, 'rb') as file:
      yield file
  except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
    raise errors.UserError(f'{path}: the compressed file is damaged ({error}).') from error
  except OSError as error:
    raise errors.UserError(f'{path}: the file cannot be read ({error.strerror or error}).') from error


@contextlib.contextmanager
def _open_parquet(path: pathlib.Path) -> Iterator[Any]:
  try:
    import pyarrow
    from pyarrow import parquet
  except ImportError as error:
    raise errors.UserError(f"{path}: reading Parquet needs pyarrow; run pip install 'jaxquant[parquet]'.") from error
  with _open(path) as source:
    try:
      with parquet.ParquetFile(source) as file:
        yield file
    except pyarrow.ArrowException as error:
      raise errors.UserError(f'{path}: not a readable Parquet file ({_one_line(error)}).') from error


def _decode(content: bytes, where: str | pathlib.Path, position: int = 0, final: bool = True) -> str:
  try:
    return codecs.getincrementaldecoder('utf-8')().decode(content, final)
  except UnicodeDecodeError as error:
    raise errors.UserError(
        f'{where}: byte {position + error.start} is not UTF-8 ({error.reason}); convert the file to UTF-8.') from error


def _one_line(error: Exception) -> str:
  return ' '.join(str(error).split())
