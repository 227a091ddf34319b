"""AQAS (arXiv:2311.05161) with clipping and GPTQ: 4-bit weights per output channel, 8-bit activations per token.

  python -m launch.quantize --config=configs/ptq/aqas_w4a8.py --model=DIR --workdir=OUT

Expected: below rounding to nearest; level with SmoothQuant and AWQ on small models (docs/results.md), below them in the
paper. Figures are published with values at 4 bits, too: aqas_w4a8v4 has both. For OPT the paper fuses norms first:
--config.methods="('norm_fusion','aqas','clip_search','gptq')". Its GPTQ is calibrated on 128 windows of 2,048 tokens,
as here, its scales on AWQ's 128 of 512; here one set serves both.
"""

from launch import settings


def get_config():
  """The configuration."""
  config = settings.quantize()
  config.methods = ('aqas', 'clip_search', 'gptq')
  config.clip_pattern = r'.*/(v|o|gate|up|down)'  # not q and k, whose errors meet in a product
  config.update(weight_kind='uint', activations=8, activation_mode='dynamic', calibration_windows=128)
  return config
