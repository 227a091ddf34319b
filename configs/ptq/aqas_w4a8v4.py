"""AQAS (arXiv:2311.05161) at its W4A8V4: as aqas_w4a8, with the values of attention at 4 bits per channel, too.

  python -m launch.quantize --config=configs/ptq/aqas_w4a8v4.py --model=DIR --workdir=OUT

Norms are fused by aqas_w4a8v4.py:opt. Expected: as aqas_w4a8. Published on WikiText-2 for OPT-125M (full precision
31.95): rounding 42.78, SmoothQuant 41.31, AWQ 44.17, AQAS 36.57, AQAS and GPTQ 35.62; for LLaMA-7B (5.68): 6.87, 7.08,
6.75, 6.69 and 6.60.
"""

from configs.ptq import aqas_w4a8


def get_config(family: str = 'llama'):
  """The configuration for models like `family`: llama or opt."""
  config = aqas_w4a8.get_config(family)
  config.value_bits = 4
  return config
