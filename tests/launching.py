"""What the tests of launchers share: a tiny configuration on real text, launches, and what these leave.

Launches are forked from a server (tests/launch_server.py), and programs are compiled once for all of them.
"""

import functools
import itertools
import json
import os
import pathlib
import pty
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pydoc_data import topics
from typing import Any, NamedTuple

from absl.testing import absltest

from jaxquant.training import restoring
from tests import compiling
from tests import source

_CONFIG = '''
from launch import settings


def get_config():
  config = settings.train()
  config.name = 'tiny'
  config.variants = ('baseline',)
  config.model.update(vocabulary=300, width=32, layers=1, heads=2, feed_forward=64, max_length=32, dtype='float32')
  config.data.train = ({train!r},)
  config.data.validation.text = {validation!r}
  config.training.update(steps=12, batch_size=8, length=16, log_every=4, save_every=4, measurements=1)
  config.optimizer.update(learning_rate=1e-2, warmup_steps=2)
  config.kurtosis.update(weight=1e-3)
  config.ptq.calibration_windows = 8
  config.evaluation.precisions = ('W4A4 static',)
  return config
'''
_SECONDS = 300  # that a launch may take
_MEASURED = ('tokens_per_second', 'eta_seconds', 'memory_bytes')  # what two runs of the same bits differ in
_numbers = itertools.count()


class Finished(NamedTuple):
  """A launch that has ended: exit code (that of a signal is negative), standard output and standard error."""

  code: int
  output: str
  error: str


class Launch:
  """A launch under way, with the files that its standard output and standard error go to."""

  def __init__(self, launcher: str, *arguments: Any, devices: int = 1, **environment: str):
    """Starts a launcher on virtual CPU devices, with more variables of the environment."""
    number = next(_numbers)
    self.output, self.error = (folder() / f'{number}.{name}' for name in ('output', 'error'))
    self.output.touch()  # may be read before the launch begins
    self._process = _ask(
        launcher=launcher, arguments=list(map(str, arguments)), environment=_devices(devices) | environment,
        output=str(self.output), error=str(self.error), seconds=_SECONDS)
    self._code = None

  def send(self, signal_number: int) -> None:
    """Sends the process a signal."""
    os.kill(self._process, signal_number)

  def until(self, condition: Callable[[], Any]) -> None:
    """Waits for a condition, which the launch has to bring about before it ends."""
    for attempt in itertools.count():
      if condition():
        return
      if attempt % 50 == 0:  # another process is asked, which on a busy machine takes its time
        self._code = _ask(process=self._process, options=os.WNOHANG)
        if self._code is not None:
          raise AssertionError(self.finish())
      time.sleep(0.002)

  def finish(self) -> Finished:
    """Waits for the end."""
    if self._code is None:
      self._code = _ask(process=self._process, options=0)
    return Finished(self._code, self.output.read_text(), self.error.read_text())


def run(launcher: str, *arguments: Any, devices: int = 1, **environment: str) -> Finished:
  """Runs a launcher to its end."""
  return Launch(launcher, *arguments, devices=devices, **environment).finish()


def run_on_terminal(launcher: str, *arguments: Any) -> tuple[int, str]:
  """Runs `python -m launch.<launcher>` in a terminal, not forked: exit code, and what the terminal was sent."""
  terminal, inside = pty.openpty()
  with subprocess.Popen(
      [sys.executable, '-m', f'launch.{launcher}', *map(str, arguments)], cwd=source.ROOT, env=_environment(),
      stdin=subprocess.DEVNULL, stdout=inside, stderr=inside) as process:
    os.close(inside)
    watchdog = threading.Timer(_SECONDS, process.kill)
    watchdog.start()
    sent = b''
    try:
      while part := os.read(terminal, 1 << 16):
        sent += part
    except OSError:  # how a terminal says that nobody writes to it any more
      pass
    os.close(terminal)
    watchdog.cancel()
  return process.returncode, sent.decode()


@functools.cache
def folder() -> pathlib.Path:
  """The folder of train.txt, validation.txt and tiny.py, a configuration that names them."""
  made = pathlib.Path(absltest.get_default_test_tmpdir()) / 'launching'
  shutil.rmtree(made, ignore_errors=True)
  made.mkdir(parents=True)
  text = '\n'.join(topics.topics[name] for name in sorted(topics.topics))
  train, validation = made / 'train.txt', made / 'validation.txt'
  train.write_text(text[:60_000], encoding='utf-8')
  validation.write_text(text[60_000:63_000], encoding='utf-8')
  (made / 'tiny.py').write_text(_CONFIG.format(train=str(train), validation=str(validation)))
  return made


def config() -> str:
  """The flag that names the configuration."""
  return f'--config={folder() / "tiny.py"}'


@functools.cache
def trained() -> pathlib.Path:
  """A workdir in which `baseline` and `both` are trained and measured at all precisions; not to be changed."""
  workdir = folder() / 'trained'
  finished = run('train', config(), f'--workdir={workdir}', "--config.variants=('baseline','both')",
                 '--config.evaluation.precisions=()')
  if finished.code:
    raise AssertionError(finished)
  return workdir


def evaluations(workdir: pathlib.Path) -> list[dict]:
  """The evaluations in `results.json`."""
  return json.loads((workdir / 'results.json').read_text())['evaluations']


def records(workdir: pathlib.Path, kind: str, variant: str = 'baseline') -> list[dict]:
  """The records of a kind in `metrics.jsonl`, without what depends on the machine."""
  lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return [{key: value for key, value in line.items() if key not in _MEASURED} for line in lines
          if line['kind'] == kind and line['variant'] == variant]


def steps(workdir: pathlib.Path, run_name: str = 'baseline-seed0') -> list[int]:
  """The steps that are saved, ascending."""
  return sorted(int(path.name) for path in workdir.glob(f'checkpoints/{run_name}/*') if path.name.isdigit())


def checksums(workdir: pathlib.Path, step: int = 12, run_name: str = 'baseline-seed0') -> dict:
  """What the manifest of a checkpoint says of every array, checksums included."""
  return restoring.read_manifest(workdir / 'checkpoints' / run_name, step)['entries']


@functools.cache
def _server() -> subprocess.Popen:
  environment = {**_environment(), 'OPENBLAS_NUM_THREADS': '1'}  # NumPy would start its threads upon import
  return subprocess.Popen(
      [sys.executable, '-m', 'tests.launch_server'], cwd=source.ROOT, env=environment, stdin=subprocess.PIPE,
      stdout=subprocess.PIPE, text=True, start_new_session=True)


def _ask(**request: Any) -> Any:
  server = _server()
  server.stdin.write(json.dumps(request) + '\n')
  server.stdin.flush()
  return json.loads(server.stdout.readline())


def _environment() -> dict[str, str]:
  return {
      **os.environ, **_devices(1), 'JAX_PLATFORMS': 'cpu', 'JAX_COMPILATION_CACHE_DIR': str(folder() / 'programs'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}


def _devices(count: int) -> dict[str, str]:
  return {'XLA_FLAGS': compiling.on_devices(count)}
