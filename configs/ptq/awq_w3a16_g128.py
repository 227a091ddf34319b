"""AWQ (arXiv:2306.00978): 3-bit weights in groups of 128 inputs, asymmetric, scales and clipping searched.

  python -m launch.quantize --config=configs/ptq/awq_w3a16_g128.py --model=DIR --workdir=OUT

Expected: below rounding to nearest. Published for Llama-2-7B on WikiText-2 at a full-precision perplexity of 5.47:
rounding to nearest 6.66, AWQ 6.24; for LLaMA-7B (5.68) 7.01 and 6.35. On OPT-like models here,
rounding loses 6.4 / 8.7 %, AWQ 4.2 / 6.2 and GPTQ 2.5 / 3.6 (docs/results.md). Calibration is published on 128 windows
of 512 tokens: --config.calibration_length=512.
"""

from configs.ptq import awq_w4a16_g128


def get_config():
  """The configuration."""
  config = awq_w4a16_g128.get_config()
  config.weights = 3
  return config
