"""Speed of loading a model of others block by block, against what the disk gives, and the memory that it takes.

  python -m launch.benchmark imports [--layers=32 ...] [--folder=DIR] [--output=FILE]

A sharded safetensors directory of random weights, by default of the sizes of LLaMA-2-7B, is written to the disk; then
its files are read from end to end, by one reader and by as many as loading has, of which the faster one is the disk's
speed, and its blocks are loaded, each dropped before the next, in turns, every time from a cache without any of their
pages.
"""

import json
import os
import pathlib
import statistics
import tempfile
import threading
import time
from concurrent import futures
from typing import Any

from absl import flags
import jax
import ml_dtypes
import numpy as np

from jaxquant import errors
from jaxquant.interop import configs
from jaxquant.interop import directory
from jaxquant.interop import families
from jaxquant.interop import names as names_lib
from jaxquant.interop import source
from jaxquant.interop import tensor_file
from jaxquant.models import validate
from jaxquant.numerics import trees
from launch import workdir
from launch.benchmarks import count_flag

_WIDTH = count_flag.DEFINE('width', 4096, 'Width of the model; heads of 128.')
_LAYERS = count_flag.DEFINE('layers', 32, 'Blocks.')
_FEED_FORWARD = count_flag.DEFINE('feed_forward', 11008, 'Hidden features of the MLP.')
_VOCABULARY = count_flag.DEFINE('vocabulary', 32000, 'Tokens.')
_DTYPE = flags.DEFINE_enum('dtype', 'bfloat16', ('bfloat16', 'float16', 'float32'), 'Of the weights in the files.')
_SHARD = flags.DEFINE_float('shard_gigabytes', 2.0, 'Size of a file.')
_FOLDER = flags.DEFINE_string('folder', None, 'Where the directory is made and removed; by default where temporary '
                              'files are, which must be on the disk to measure.')
_REPETITIONS = count_flag.DEFINE('repetitions', 3, 'Repetitions; the median counts.')

_DTYPES = {'bfloat16': ml_dtypes.bfloat16, 'float16': np.float16, 'float32': np.float32}
_READ_BYTES = 1 << 22


def run() -> dict[str, Any]:
  """Writes the directory, measures, and removes it."""
  try:
    with tempfile.TemporaryDirectory(prefix='jaxquant-imports-', dir=_FOLDER.value) as folder:
      return _measure(_write(pathlib.Path(folder)))
  except OSError as error:
    raise errors.UserError(f'cannot write the model: {error.strerror}') from error


def _measure(folder: pathlib.Path) -> dict[str, Any]:
  files = sorted(folder.glob('*.safetensors'))
  gigabytes = sum(path.stat().st_size for path in files) / 1e9
  opened = source.DirectorySource(folder)
  blocks = ['', *(f'layers/{i}' for i in range(opened.config.layers))]
  sizes = [4 * trees.size(opened.abstract()['layers']['0']),
           4 * trees.size({key: value for key, value in opened.abstract().items() if key != 'layers'})]
  print(f'{len(files)} files of {_DTYPE.value}, {gigabytes:.2f} GB; a block takes {sizes[0] / 1e9:.2f} GB in float32, '
        f'embedding and head {sizes[1] / 1e9:.2f} GB')
  rows = []
  for _ in range(_REPETITIONS.value):
    disk = max(gigabytes / _reading_seconds(files, readers) for readers in (1, source.READERS))
    _evict(files)
    with _Memory() as memory:
      started, worked = time.monotonic(), time.process_time()
      for path in blocks:
        jax.block_until_ready(opened.load(path))
      load = gigabytes / (time.monotonic() - started)
      work = (time.process_time() - worked) / gigabytes
    rows.append({'disk_gigabytes_per_second': disk, 'load_gigabytes_per_second': load, 'ratio': load / disk,
                 'processor_seconds_per_gigabyte': work, 'peak_gigabytes': memory.peak / 1e9})
    print(f'disk {disk:.2f} GB/s, loading {load:.2f} GB/s, {load / disk:.2f} of it, {work:.2f} s of a processor for a '
          f'GB; {memory.peak / 1e9:.2f} GB resident at most, pages of files not counted', flush=True)
  ratio, peak = statistics.median(row['ratio'] for row in rows), max(row['peak_gigabytes'] for row in rows)
  limit = sizes[0] / 1e9 + 1
  print(f'median ratio {ratio:.2f}; peak {peak:.2f} GB, a block and 1 GB are {limit:.2f} GB')
  return {'environment': workdir.environment(), 'model': opened.config.to_dict(), 'gigabytes': gigabytes,
          'block_gigabytes': sizes[0] / 1e9, 'rows': rows, 'ratio': ratio, 'peak_gigabytes': peak}


def _write(folder: pathlib.Path) -> pathlib.Path:
  """Writes the model: values are any bits of its dtype that are finite."""
  values = {
      'model_type': 'llama', 'architectures': ['LlamaForCausalLM'], 'hidden_size': _WIDTH.value,
      'num_hidden_layers': _LAYERS.value, 'num_attention_heads': max(1, _WIDTH.value // 128),
      'intermediate_size': _FEED_FORWARD.value, 'vocab_size': _VOCABULARY.value, 'dtype': _DTYPE.value}
  (folder / directory.CONFIG).write_text(json.dumps(values))
  config = configs.read(values)
  leaves = trees.arrays(validate.abstract_params(config))
  rng, index, held, number = np.random.default_rng(0), {}, {}, 0

  def flush():
    nonlocal number
    number += 1
    name = f'model-{number:05}.safetensors'
    tensor_file.write(folder / name, held)
    index.update(dict.fromkeys(held, name))
    held.clear()

  for path, entry in names_lib.Names(families.find(values), config).entries.items():
    held[entry.tensor] = _random(rng, entry.layout.shape(leaves[path].shape))
    if sum(array.nbytes for array in held.values()) >= _SHARD.value * 1e9:
      flush()
  if held:
    flush()
  (folder / directory.INDEX).write_text(json.dumps({'weight_map': index}))
  return folder


def _random(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  """An array of random bits without one of the exponent, so that all are finite."""
  dtype = np.dtype(_DTYPES[_DTYPE.value])
  bits = np.frombuffer(bytearray(rng.bytes(int(np.prod(shape)) * dtype.itemsize)), f'u{dtype.itemsize}')
  bits &= bits.dtype.type(~(1 << ml_dtypes.finfo(dtype).nmant) & (2 ** (8 * dtype.itemsize) - 1))
  return bits.view(dtype).reshape(shape)


def _evict(files: list[pathlib.Path]) -> None:
  """Drops the pages of files, all of which are on the disk, from the cache."""
  for path in files:
    with open(path, 'rb') as file:
      os.fsync(file.fileno())
      os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _reading_seconds(files: list[pathlib.Path], readers: int) -> float:
  """The time in which files are read from end to end, so many at once, none of them cached."""
  _evict(files)
  started = time.monotonic()
  with futures.ThreadPoolExecutor(readers) as pool:
    list(pool.map(_read, files))
  return time.monotonic() - started


def _read(path: pathlib.Path) -> None:
  """Reads a file from end to end into one buffer."""
  buffer = bytearray(_READ_BYTES)
  with open(path, 'rb', buffering=0) as file:
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
    while file.readinto(buffer):
      pass


class _Memory:
  """Watches the resident memory of this process, pages of files not counted, while it is entered.

  Attributes:
    peak: bytes at most.
  """

  def __enter__(self):
    self.peak, self._ended = 0, threading.Event()
    self._thread = threading.Thread(target=self._watch)
    self._thread.start()
    return self

  def __exit__(self, *error):
    self._ended.set()
    self._thread.join()

  def _watch(self):
    while not self._ended.wait(0.01):
      with open('/proc/self/status', encoding='utf-8') as file:
        found = next(line for line in file if line.startswith('RssAnon'))
      self.peak = max(self.peak, 1024 * int(found.split()[1]))
