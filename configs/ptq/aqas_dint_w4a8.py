"""AQAS with dINT4 weights (arXiv:2311.05161), clipping and GPTQ: per output channel, 8-bit activations per token.

  python -m launch.quantize --config=configs/ptq/aqas_dint_w4a8.py --model=DIR --workdir=OUT

Norms are fused by aqas_dint_w4a8.py:opt. Expected: level with plain integers (aqas_w4a8), within 0.3 % on small models
(docs/results.md). Figures are published with values at 4 bits, too, which aqas_dint_w4a8v4 has.
"""

from configs.ptq import aqas_w4a8


def get_config(family: str = 'llama'):
  """The configuration for models like `family`: llama or opt."""
  config = aqas_w4a8.get_config(family)
  config.weight_kind = 'dint'
  return config
