"""AQAS with dINT4 weights (arXiv:2311.05161), clipping and GPTQ: per output channel, 8-bit activations per token.

  python -m launch.quantize --config=configs/ptq/aqas_dint_w4a8.py --model=DIR --workdir=OUT

Expected: level with plain integers (aqas_w4a8) or below them. Published for OPT-125M on WikiText-2: 35.62 to 34.92; for
LLaMA-7B 6.60 to 6.48 (full precision 31.95 and 5.68, values at 4 bits, too: --config.value_bits=4).
"""

from launch import settings


def get_config():
  """The configuration."""
  config = settings.quantize()
  config.methods = ('aqas', 'clip_search', 'gptq')
  config.clip_pattern = r'.*/(v|o|gate|up|down)'  # not q and k, whose errors meet in a product
  config.update(weight_kind='dint', activations=8, activation_mode='dynamic', calibration_windows=128)
  return config
