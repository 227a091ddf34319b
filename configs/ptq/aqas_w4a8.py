"""AQAS (arXiv:2311.05161) with clipping and GPTQ: 4-bit weights per output channel, 8-bit activations per token.

  python -m launch.quantize --config=configs/ptq/aqas_w4a8.py --model=DIR --workdir=OUT

Expected: below SmoothQuant and AWQ with the same numbers. Published for OPT-125M on WikiText-2 (full precision 31.95,
values at 4 bits too: --config.value_bits=4): rounding 42.78, SmoothQuant 41.31, AWQ 44.17, AQAS 36.57, AQAS and GPTQ
35.62. For OPT the paper fuses norms first: --config.methods="('norm_fusion','aqas','clip_search','gptq')".
"""

from launch import settings


def get_config():
  """The configuration."""
  config = settings.quantize()
  config.methods = ('aqas', 'clip_search', 'gptq')
  config.clip_pattern = r'.*/(v|o|gate|up|down)'  # not q and k, whose errors meet in a product
  config.update(weight_kind='uint', activations=8, activation_mode='dynamic', calibration_windows=128)
  return config
