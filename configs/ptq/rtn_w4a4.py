"""Round-to-nearest: 4-bit weights, a scale per output channel, and 4-bit static activations.

  python -m launch.quantize --config=configs/ptq/rtn_w4a4.py --model=DIR --workdir=OUT

Hardware: any; seconds. Ranges are the learned ones of a model trained with activation regularization
(arXiv:2404.03605), where quality stays near that of float; an ordinary model gets calibrated min-max ranges and breaks.
Expected: of models of 26 million parameters, 49.5 on books where float has 48.6, and above 6,000 without the
regularization (docs/results.md). Published for a billion parameters: competitive with 16 bits.
"""

from launch import settings


def get_config():
  """The configuration."""
  return settings.quantize()
