"""Outlier Suppression+ (arXiv:2304.09145), its INT4 of LLaMA: weights per output channel, activations per token.

  python -m launch.quantize --config=configs/ptq/outlier_suppression_w4a4.py --model=DIR --workdir=OUT

Expected: far from full precision, yet closer than SmoothQuant. Published for LLaMA-7B on WikiText-2, down projections
not quantized: full precision 5.68, min-max 473.97, SmoothQuant 16.87, Outlier Suppression+ 14.17; quantized too: 40.32.
"""

from launch import settings


def get_config():
  """The configuration."""
  config = settings.quantize()
  config.methods = ('outlier_suppression', 'round_to_nearest')
  config.update(weight_kind='uint', activation_mode='dynamic', calibration_windows=128)
  return config
