"""Round-to-nearest: 4-bit weights in groups of 64 inputs, activations not quantized.

  python -m launch.quantize --config=configs/ptq/rtn_w4a16_g64.py --model=DIR --workdir=OUT

Hardware: any; seconds. Symmetric; --config.weight_kind=uint is asymmetric, offset_uint so without zero in range. Meant for models trained without input quantizers.
"""

from launch import settings


def get_config():
  """The configuration."""
  config = settings.quantize()
  config.activations = 16
  config.group_size = 64
  return config
