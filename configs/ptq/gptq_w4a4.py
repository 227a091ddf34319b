"""GPTQ (arXiv:2210.17323): 4-bit weights, a scale per output channel, and 4-bit static activations.

  python -m launch.quantize --config=configs/ptq/gptq_w4a4.py --model=DIR --workdir=OUT

For models trained with activation regularization (arXiv:2404.03605), whose learned ranges are kept. Expected: better
than rounding to nearest (rtn_w4a4) where kernels were trained in floats, by 0.3 to 0.8 % so far (docs/results.md); no
better where training rounded them, as the configurations do in its last fifth. That the difference shrinks where output
kurtosis was regularized, as the paper has it, does not show beyond what trainings of one kind differ by.
"""

from launch import settings


def get_config():
  """The configuration."""
  config = settings.quantize()
  config.methods = ('gptq',)
  return config
