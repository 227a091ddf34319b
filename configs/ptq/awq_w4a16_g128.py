"""AWQ (arXiv:2306.00978): 4-bit weights in groups of 128 inputs, asymmetric, scales and clipping searched.

  python -m launch.quantize --config=configs/ptq/awq_w4a16_g128.py --model=DIR --workdir=OUT

Expected: below rounding to nearest. Published for Llama-2-7B on WikiText-2 at a full-precision perplexity of 5.47:
rounding to nearest 5.73, AWQ 5.60. On OPT-like models, rounding loses 1.46 / 1.89 %, AWQ 0.93 / 1.41, most of it by
its clip search, and GPTQ 0.46 / 0.75 (docs/results.md). Calibration is published on 128 windows of 512 tokens:
--config.calibration_length=512.
"""

from launch import settings


def get_config():
  """The configuration."""
  config = settings.quantize()
  config.methods = ('awq', 'clip_search', 'round_to_nearest')
  config.clip_pattern = settings.CLIPPED
  config.update(weight_kind='uint', group_size=128, activations=16, calibration_windows=128)
  return config
