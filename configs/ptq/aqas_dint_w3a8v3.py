"""AQAS with dINT3 weights (arXiv:2311.05161), clipping and GPTQ: 3-bit weights and values, 8-bit activations per token.

  python -m launch.quantize --config=configs/ptq/aqas_dint_w3a8v3.py --model=DIR --workdir=OUT

Norms are fused by aqas_dint_w3a8v3.py:opt. Expected: below the same with plain integers (--config.weight_kind=uint), on
small models by 3 to 5 % with rounding to nearest, with these methods by 0.4 % at most (docs/results.md). Published on
WikiText-2 for OPT-125M, OPT-6.7B and LLaMA-7B (full precision 31.95, 12.29 and 5.68): integers 54.84, 69.45 and 24.85,
dINT3 46.34, 17.42 and 10.04. Values stay plain integers, static per channel.
"""

from configs.ptq import aqas_dint_w4a8


def get_config(family: str = 'llama'):
  """The configuration for models like `family`: llama or opt."""
  config = aqas_dint_w4a8.get_config(family)
  config.update(weights=3, value_bits=3)
  return config
