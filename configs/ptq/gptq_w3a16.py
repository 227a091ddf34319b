"""GPTQ (arXiv:2210.17323) as in its main tables: 3-bit weights, asymmetric, a scale per output channel.

  python -m launch.quantize --config=configs/ptq/gptq_w3a16.py --model=DIR --workdir=OUT

As gptq_w4a16, a bit less. Expected: far below rounding to nearest, which breaks down. Published on WikiText-2 for
OPT-125M, 350M and 1.3B (full precision 27.65, 22.00 and 14.63): rounding to nearest 1,300, 64.57 and 13,000, GPTQ
53.85, 33.79 and 20.97. Not measured here without groups; gptq_w3a16_g128 has them.
"""

from configs.ptq import gptq_w4a16


def get_config():
  """The configuration."""
  config = gptq_w4a16.get_config()
  config.weights = 3
  return config
