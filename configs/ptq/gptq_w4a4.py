"""GPTQ (arXiv:2210.17323): 4-bit weights, a scale per output channel, and 4-bit static activations.

  python -m launch.quantize --config=configs/ptq/gptq_w4a4.py --model=DIR --workdir=OUT

For models trained with activation regularization (arXiv:2404.03605), whose learned ranges are kept. Expected: no worse
than rounding to nearest (rtn_w4a4), and less of a gain where output kurtosis was regularized.
"""

from launch import settings


def get_config():
  """The configuration."""
  config = settings.quantize()
  config.methods = ('gptq',)
  return config
