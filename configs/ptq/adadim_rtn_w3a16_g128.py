"""AdaDim (arXiv:2309.15531) with rounding to nearest: 3-bit weights in groups of 128, along inputs or outputs.

  python -m launch.quantize --config=configs/ptq/adadim_rtn_w3a16_g128.py --model=DIR --workdir=OUT

Expected: below groups along inputs for all, and below groups along outputs for all, on small models by 0.6 to 2.5 %
(docs/results.md). Published for LLaMA-2-7B: up to 4.7 points of MMLU over rounding to nearest. Calibration is published
on 256 windows of 512 tokens: --config.calibration_length=512.
"""

from launch import settings


def get_config():
  """The configuration."""
  config = settings.quantize()
  config.methods = ('adadim', 'round_to_nearest')
  config.update(weights=3, weight_kind='uint', group_size=128, activations=16, calibration_windows=256)
  return config
