"""What the tests of launchers share: a tiny configuration on real text, and launches in processes of their own."""

import os
import pathlib
import subprocess
import sys

from jaxquant.data import standard_library
from tests import source

_CONFIG = '''
from launch import settings


def get_config():
  config = settings.train()
  config.name = 'tiny'
  config.model.update(vocabulary=300, width=32, layers=1, heads=2, feed_forward=64, max_length=32, dtype='float32')
  config.data.train = ({train!r},)
  config.data.validation.text = {validation!r}
  config.training.update(steps=12, batch_size=8, length=16, log_every=4, save_every=4, measurements=2)
  config.optimizer.update(learning_rate=1e-2, warmup_steps=2)
  config.ptq.calibration_windows = 8
  return config
'''


def write_files(folder: pathlib.Path) -> pathlib.Path:
  """Writes slices of the standard library's documentation and a configuration that names them; returns its path."""
  text = '\n'.join(standard_library.documents('validation'))
  (folder / 'train.txt').write_text(text[:150_000], encoding='utf-8')
  (folder / 'validation.txt').write_text(text[150_000:154_000], encoding='utf-8')
  config = folder / 'tiny.py'
  config.write_text(_CONFIG.format(train=str(folder / 'train.txt'), validation=str(folder / 'validation.txt')))
  return config


def start(launcher: str, *arguments: str, devices: int = 1) -> subprocess.Popen:
  """Starts `python -m launch.<launcher>` on virtual CPU devices, its output captured."""
  environment = {
      **os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(source.ROOT),
      'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}'}
  return subprocess.Popen(
      [sys.executable, '-m', f'launch.{launcher}', *map(str, arguments)], env=environment, stdout=subprocess.PIPE,
      stderr=subprocess.PIPE, text=True)


def run(launcher: str, *arguments: str, devices: int = 1) -> tuple[int, str, str]:
  """Runs a launcher to its end: (exit code, standard output, standard error)."""
  process = start(launcher, *arguments, devices=devices)
  output, error = process.communicate(timeout=300)
  return process.returncode, output, error
