"""Outlier Suppression+ (arXiv:2304.09145) on BERT, its INT6: weights per output channel, activations static per tensor.

  python -m launch.quantize --config=configs/ptq/outlier_suppression_bert_w6a6.py --model=DIR --workdir=OUT

It folds at the outputs of the norms, and undoes the fold for the residual branches, which read these outputs in
post-norm blocks. As published for BERT, ranges are clipped token by token; the published code seeks the share of tokens
that keep within them from 100 % down to 70 at 6 bits, by the loss of the whole model. 70 % was the best of those
measured. Expected: perplexity of a BERT-like model on books 25.5, where nothing leaves 26.9, averages of extrema
(--config.ranges=average) 32.7 and 33.3, and full precision is 23.4 (docs/results.md). Published for BERT-base, average
of GLUE at full precision 83.8: Outlier Suppression 81.2, Outlier Suppression+ 82.8.
"""

from configs.ptq import outlier_suppression_w6a6


def get_config():
  """The configuration."""
  config = outlier_suppression_w6a6.get_config('opt')
  config.update(ranges='token_wise', percentile=70.0)
  return config
