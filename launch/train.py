"""Trains variants of a language model, quantizes and evaluates each, and writes the report.

  python -m launch.train --config=configs/quickstart.py --workdir=DIR [--config.a.b=value ...]
"""

import time

from launch import config_flag
from launch import runtime


def main() -> None:
  """Runs the experiment of the flags."""
  # Here, so that --help and mistakes in flags are answered before JAX and its libraries are loaded.
  from launch import comparison  # pylint: disable=g-import-not-at-top
  comparison.run(config_flag.value('configs/quickstart.py'), runtime.WORKDIR.value, time.monotonic())


if __name__ == '__main__':
  runtime.launch(main)
