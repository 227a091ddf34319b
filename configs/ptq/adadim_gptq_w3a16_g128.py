"""AdaDim (arXiv:2309.15531) with GPTQ: 3-bit weights in groups of 128, along inputs or outputs, in activation order.

  python -m launch.quantize --config=configs/ptq/adadim_gptq_w3a16_g128.py --model=DIR --workdir=OUT

Expected: no worse than GPTQ with groups along inputs; on small models level with the better axis for all
(docs/results.md). Published for Vicuna-33B: 55.68 to 57.08 points of MMLU. Calibration is published on 256 windows of
512 tokens: --config.calibration_length=512.
"""

from launch import settings


def get_config():
  """The configuration."""
  config = settings.quantize()
  config.methods = ('adadim', 'gptq')
  config.update(weights=3, weight_kind='uint', group_size=128, activations=16, calibration_windows=256)
  config.gptq.update(act_order=True, static_groups=True)
  return config
