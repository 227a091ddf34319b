"""GPTQ (arXiv:2210.17323) as in its main tables: 4-bit weights, asymmetric, a scale per output channel.

  python -m launch.quantize --config=configs/ptq/gptq_w4a16.py --model=DIR --workdir=OUT

Activations are not quantized. Expected: between rounding to nearest and full precision. Published on WikiText-2 for
OPT-125M, 1.3B and 6.7B (full precision 27.65, 14.63 and 10.86): rounding to nearest 37.28, 48.17 and 12.10, GPTQ 31.12,
15.47 and 11.39. Measured on small models beside 8-bit activations, which cost next to nothing: GPTQ takes back 0.3 to
0.6 of what rounding loses (docs/results.md).
"""

from configs.ptq import gptq_w4a16_g128


def get_config():
  """The configuration."""
  config = gptq_w4a16_g128.get_config()
  config.group_size = None
  return config
