"""SmoothQuant (arXiv:2211.10438), its level O1: 8-bit weights with one scale a kernel, 8-bit activations per token.

  python -m launch.quantize --config=configs/ptq/smooth_quant_w8a8.py --model=DIR --workdir=OUT

Expected: perplexity of full precision to a percent. Published for Llama-2-7B: 5.47 to 5.52 with an exponent of 0.85,
which LLaMA-like models want (--config.smooth_quant.exponent=0.85); for OPT-175B 10.99 to 11.11. Not measured here with
8-bit weights; of 4-bit ones, with the same activations, SmoothQuant makes 0.1 to 0.3 % less of a loss on small models,
or no less (docs/results.md). Calibration is published on 512 windows of 512 tokens: --config.calibration_length=512.
"""

from launch import settings


def get_config():
  """The configuration."""
  config = settings.quantize()
  config.methods = ('smooth_quant', 'round_to_nearest')
  config.update(weights=8, weight_per_tensor=True, activations=8, activation_mode='dynamic', activation_kind='int',
                calibration_windows=512)
  return config
