"""AWQ (arXiv:2306.00978): 3-bit weights in groups of 128 inputs, asymmetric, scales and clipping searched.

  python -m launch.quantize --config=configs/ptq/awq_w3a16_g128.py --model=DIR --workdir=OUT

Expected: below rounding to nearest. Published for Llama-2-7B on WikiText-2 at a full-precision perplexity of 5.47:
rounding to nearest 6.66, AWQ 6.24. Calibration is published on 128 windows of
512 tokens: --config.calibration_length=512.
"""

from launch import settings


def get_config():
  """The configuration."""
  config = settings.quantize()
  config.methods = ('awq', 'clip_search', 'round_to_nearest')
  config.clip_pattern = r'.*/(v|o|gate|up|down)'  # not q and k, whose errors meet in a product
  config.update(weights=3, weight_kind='uint', group_size=128, activations=16, calibration_windows=128)
  return config
