"""AQAS with dINT4 weights (arXiv:2311.05161) at W4A8V4: as aqas_dint_w4a8, values of attention at 4 bits, too.

  python -m launch.quantize --config=configs/ptq/aqas_dint_w4a8v4.py --model=DIR --workdir=OUT

Norms are fused by aqas_dint_w4a8v4.py:opt. Expected: below plain integers (aqas_w4a8v4), by 0.2 % on small models
(docs/results.md). Published on WikiText-2 for OPT-125M (full precision 31.95): 35.62 with integers, 34.92 with dINT4;
for LLaMA-7B (5.68): 6.60 and 6.48. Values stay plain integers, static per channel.
"""

from configs.ptq import aqas_dint_w4a8


def get_config(family: str = 'llama'):
  """The configuration for models like `family`: llama or opt."""
  config = aqas_dint_w4a8.get_config(family)
  config.value_bits = 4
  return config
