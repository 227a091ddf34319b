"""GPTQ (arXiv:2210.17323): 4-bit weights in groups of 128 inputs, asymmetric, activations not quantized.

  python -m launch.quantize --config=configs/ptq/gptq_w4a16_g128.py --model=DIR --workdir=OUT

Expected: between rounding to nearest and full precision. Published for Llama-2-7B on WikiText-2 at a full-precision
perplexity of 5.47: rounding to nearest 5.73, GPTQ 5.69, in activation order 5.63. Measured on small models: GPTQ takes
back 0.4 to 0.7 of what rounding loses (docs/results.md). Without groups: gptq_w4a16.
"""

from launch import settings


def get_config():
  """The configuration."""
  config = settings.quantize()
  config.methods = ('gptq',)
  config.update(weight_kind='uint', group_size=128, activations=16, calibration_windows=128)
  return config
