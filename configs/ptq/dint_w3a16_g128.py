"""dINT3 (arXiv:2311.05161), rounded to nearest: 3-bit weights in groups of 128 inputs, activations not quantized.

  python -m launch.quantize --config=configs/ptq/dint_w3a16_g128.py --model=DIR --workdir=OUT

Expected: below plain integers (--config.weight_kind=uint), by more than at 4 bits (dint_w4a16_g128), and where those
break down by far. Measured on small models: by 1.0 to 2.2 %, and by 0.4 to 0.8 % where GPTQ rounds (docs/results.md).
Published on WikiText-2 for OPT-125M, 1.3B and 2.7B (full precision 31.95, 16.41 and 14.32): integers 58.37, 195.1 and
499.4, dINT3 54.53, 21.70 and 24.15.
"""

from configs.ptq import dint_w4a16_g128


def get_config():
  """The configuration."""
  config = dint_w4a16_g128.get_config()
  config.weights = 3
  return config
