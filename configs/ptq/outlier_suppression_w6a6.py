"""Outlier Suppression+ (arXiv:2304.09145), its INT6: weights per output channel, activations static for the tensor.

  python -m launch.quantize --config=configs/ptq/outlier_suppression_w6a6.py --model=DIR --workdir=OUT

Expected: closer to full precision than SmoothQuant with the same numbers, and both closer than no method. Published for
OPT-66B on LAMBADA: full precision 73.9, SmoothQuant 0.0, Outlier Suppression+ 72.7.
"""

from launch import settings


def get_config():
  """The configuration."""
  config = settings.quantize()
  config.methods = ('outlier_suppression', 'round_to_nearest')
  config.update(weights=6, weight_kind='uint', activations=6, ranges='average', calibration_windows=128)
  return config
