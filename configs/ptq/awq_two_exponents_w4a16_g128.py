"""AWQ as its first version had it (arXiv:2306.00978v1): exponents of activations and of weights, both searched.

  python -m launch.quantize --config=configs/ptq/awq_two_exponents_w4a16_g128.py --model=DIR --workdir=OUT

Expected: close to awq_w4a16_g128, at 22 times as many candidates. Weights, groups, clipping and calibration as there;
the figures of that version are not quoted here. Two small models lost the same as with one exponent (docs/results.md).
"""

from configs.ptq import awq_w4a16_g128


def get_config():
  """The configuration."""
  config = awq_w4a16_g128.get_config()
  config.awq.two_exponents = True
  return config
