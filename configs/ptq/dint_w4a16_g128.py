"""dINT4 (arXiv:2311.05161), rounded to nearest: 4-bit weights in groups of 128 inputs, activations not quantized.

  python -m launch.quantize --config=configs/ptq/dint_w4a16_g128.py --model=DIR --workdir=OUT

Expected: below plain integers (--config.weight_kind=uint), with --config.methods="('gptq',)" by less. Measured: by 0.1
% on an OPT-like model and by nothing on a LLaMA-like one; per output channel, beside 8-bit activations, by 0.6 % on
OPT-like models and by 0.2 % or nothing on LLaMA-like ones (docs/results.md). Other special values than half a step:
--config.weight_kind=dint/4, or dint/8. Published on WikiText-2 for OPT-125M and OPT-1.3B (full precision 31.95 and
16.41): integers 35.52 and 17.69, dINT4 34.40 and 17.06; with GPTQ 34.23 and 16.92, 34.04 and 16.82.
"""

from launch import settings


def get_config():
  """The configuration."""
  config = settings.quantize()
  config.update(weight_kind='dint', group_size=128, activations=16)
  return config
