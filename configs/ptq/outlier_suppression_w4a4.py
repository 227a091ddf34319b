"""Outlier Suppression+ (arXiv:2304.09145), its INT4 of LLaMA: weights per output channel, activations per token.

  python -m launch.quantize --config=configs/ptq/outlier_suppression_w4a4.py --model=DIR --workdir=OUT

It folds at the outputs of the norms and at what down projections read, as published for LLaMA; models with LayerNorm
take outlier_suppression_w4a4.py:opt, which folds at the norms alone. Expected: far from full precision, yet closer than
SmoothQuant. Published for LLaMA-7B on WikiText-2, down projections not quantized: full precision 5.68, min-max 473.97,
SmoothQuant 16.87, Outlier Suppression+ 14.17; quantized too: 40.32.
"""

from configs.ptq import outlier_suppression_w6a6


def get_config(family: str = 'llama'):
  """The configuration for models like `family`: opt or llama."""
  config = outlier_suppression_w6a6.get_config(family)
  config.update(weights=4, activations=4, activation_mode='dynamic')
  return config
