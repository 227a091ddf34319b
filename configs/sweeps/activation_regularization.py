"""What rounds the weights of models trained with activation regularization (arXiv:2404.03605), at 4 bits.

  python -m launch.sweep --rows=configs/sweeps/activation_regularization.py --model=DIR --variant=both --text=FILE \
    --workdir=OUT

Static activations keep the ranges that were learned, and have calibrated ones in plain models.
"""

import itertools

from configs.ptq import gptq_w4a4

_ROUNDINGS = (('round_to_nearest',), ('gptq',), ('clip_search', 'gptq'))


def get_rows():
  """The configurations by name."""
  rows = {}
  for activations, methods in itertools.product((4, 16), _ROUNDINGS):
    config = gptq_w4a4.get_config()
    config.update(activations=activations, methods=methods, calibration_windows=128)
    rows[f'W4A{activations}, {" + ".join(methods)}'] = config
  return rows
