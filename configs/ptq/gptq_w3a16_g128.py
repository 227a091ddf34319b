"""GPTQ (arXiv:2210.17323) in activation order: 3-bit weights in groups of 128 inputs, activations not quantized.

  python -m launch.quantize --config=configs/ptq/gptq_w3a16_g128.py --model=DIR --workdir=OUT

Expected: well below rounding to nearest. Published for Llama-2-7B on WikiText-2 at a full-precision perplexity of 5.47:
rounding to nearest 6.66, GPTQ 6.43, in activation order 6.42. Measured on small models: GPTQ takes back 0.4 to 0.7 of
what rounding loses (docs/results.md). Without groups: gptq_w3a16.
"""

from launch import settings


def get_config():
  """The configuration."""
  config = settings.quantize()
  config.methods = ('gptq',)
  config.update(weights=3, weight_kind='uint', group_size=128, activations=16, calibration_windows=128)
  config.gptq.update(act_order=True, static_groups=True)
  return config
