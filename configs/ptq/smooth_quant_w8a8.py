"""SmoothQuant (arXiv:2211.10438), its level O1: 8-bit weights with one scale a kernel, 8-bit activations per token.

  python -m launch.quantize --config=configs/ptq/smooth_quant_w8a8.py --model=DIR --workdir=OUT

Expected: perplexity of full precision to a percent. Published for Llama-2-7B: 5.47 to 5.52 with an exponent of 0.85,
which LLaMA-like models want (--config.smooth_quant.exponent=0.85); for OPT-175B 10.99 to 11.11. Measured here on
a small LLaMA-like model, with a scale an output: within 0.1 % of full precision, as without any method
(docs/results.md). Calibration is published on 512 windows of 512 tokens: --config.calibration_length=512.
"""

from launch import settings


def get_config():
  """The configuration."""
  config = settings.quantize()
  config.methods = ('smooth_quant', 'round_to_nearest')
  config.update(weights=8, weight_per_tensor=True, activations=8, activation_mode='dynamic', activation_kind='int',
                calibration_windows=512)
  return config
