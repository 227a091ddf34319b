"""Round-to-nearest: 4-bit weights in groups of 64 inputs, activations not quantized.

  python -m launch.quantize --config=configs/ptq/rtn_w4a16_g64.py --model=DIR --workdir=OUT

Hardware: any; seconds. Meant for models trained without input quantizers. Codes are symmetric;
--config.weight_kind=uint makes them asymmetric, offset_uint without zero in every range, too.
"""

from launch import settings


def get_config():
  """The configuration."""
  config = settings.quantize()
  config.activations = 16
  config.group_size = 64
  return config
