"""AQAS with dINT3 weights (arXiv:2311.05161), clipping and GPTQ: 3-bit weights and values, 8-bit activations per token.

  python -m launch.quantize --config=configs/ptq/aqas_dint_w3a8v3.py --model=DIR --workdir=OUT

Expected: below the same with plain integers (--config.weight_kind=uint); with rounding to nearest by much, with these
methods by little on small models.
Published on WikiText-2 for OPT-125M, OPT-6.7B and LLaMA-7B (full precision 31.95, 12.29 and 5.68): integers 54.84,
69.45 and 24.85, dINT3 46.34, 17.42 and 10.04. Values stay plain integers, static per channel.
"""

from configs.ptq import aqas_dint_w4a8


def get_config():
  """The configuration."""
  config = aqas_dint_w4a8.get_config()
  config.update(weights=3, value_bits=3)
  return config
