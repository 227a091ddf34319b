"""Outlier Suppression+ (arXiv:2304.09145), its INT8*: symmetric ranges, one for a kernel, static ones for activations.

  python -m launch.quantize --config=configs/ptq/outlier_suppression_w8a8.py --model=DIR --workdir=OUT

It folds at the outputs of the norms, as published for OPT, BLOOM and BERT. Expected: close to full precision, and
hardly closer than without a method: at 8 bits there is little to win. Published for BERT-base, average of GLUE at full
precision 83.8: Outlier Suppression 83.0, Outlier Suppression+ 83.5. Perplexity of a BERT-like model on books, with
asymmetric ranges, and of weights per output channel: 24.79 with nothing, 24.60 with Outlier Suppression+, 24.11 in full
precision, the rest being lost at the inputs of o and down (docs/results.md).
"""

from configs.ptq import outlier_suppression_w6a6


def get_config():
  """The configuration."""
  config = outlier_suppression_w6a6.get_config('opt')
  config.update(weights=8, weight_kind='int', weight_per_tensor=True, activations=8, symmetric_ranges=True)
  return config
