"""Outlier Suppression+ (arXiv:2304.09145), its INT4 of LLaMA: weights per output channel, activations per token.

  python -m launch.quantize --config=configs/ptq/outlier_suppression_w4a4.py --model=DIR --workdir=OUT

It folds at the outputs of the norms and at what down projections read, as published for LLaMA; models with LayerNorm
take outlier_suppression_w4a4.py:opt, which folds at the norms alone. What is published for OPT has groups, of weights
and of activations: outlier_suppression_w4a4.py:opt,1024 or outlier_suppression_w4a4.py:opt,512, which must divide what
linears read.

Expected: far from full precision. Published for LLaMA-7B on WikiText-2, down projections not quantized: full precision
5.68, min-max 473.97, SmoothQuant 16.87, Outlier Suppression+ 14.17; quantized too: 430, 52.85 and 40.32. For OPT in
groups the paper has a figure, and claims no loss. Measured per token on small models, over full precision: OPT-like
10.7 %, with SmoothQuant and searched exponents 15.9 %; LLaMA-like 20.2 %, level with SmoothQuant so searched
(docs/results.md). Groups have been measured with GPTQ and of 128 alone: they take away half of what is lost on
OPT-like models.
"""

from configs.ptq import outlier_suppression_w6a6


def get_config(setting: str = 'llama'):
  """The configuration for models like opt or llama, and behind a comma inputs and features that share a scale."""
  family, _, group_size = setting.partition(',')
  config = outlier_suppression_w6a6.get_config(family)
  config.update(weights=4, activations=4, activation_mode='dynamic')
  if group_size:
    config.update(group_size=int(group_size), activation_group_size=int(group_size))
  return config
