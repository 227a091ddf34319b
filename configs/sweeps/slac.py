"""SLAC (arXiv:2311.05161, section 3.2): windows of calibration as long as those of the task, or longer, or shorter.

  python -m launch.sweep --rows=configs/sweeps/slac.py:64,128,512 --length=64 --length=128 --length=512 --model=DIR \
    --text=FILE --tasks=FILE_OR_DIR --workdir=OUT

The argument lists the lengths, of as many tokens in all (slac_w4a8). Expected: worse where calibration is shorter than
what is scored, sometimes by much; the same to 0.2 % where it is longer (docs/results.md).
"""

import itertools

from configs.ptq import slac_w4a8

_WAYS = (('gptq',), ('aqas', 'clip_search', 'gptq'))


def get_rows(lengths: str = '64,128,512,2048'):
  """The configurations by name."""
  rows = {}
  for length, methods in itertools.product(lengths.split(','), _WAYS):
    config = slac_w4a8.get_config(length)
    config.methods = methods
    rows[f'{" + ".join(methods)}, calibrated at {length}'] = config
  return rows
