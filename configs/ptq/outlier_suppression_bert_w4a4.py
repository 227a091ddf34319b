"""Outlier Suppression+ (arXiv:2304.09145) on BERT, its INT4: as outlier_suppression_bert_w6a6, at 4 bits.

  python -m launch.quantize --config=configs/ptq/outlier_suppression_bert_w4a4.py --model=DIR --workdir=OUT

Published for BERT-base, average of GLUE at full precision 83.8: Outlier Suppression 62.7, Outlier Suppression+ 78.2,
with ranges that are clipped token by token. Expected here: far from full precision, or lost, by the inputs of o and
down, which no fold reaches: a perplexity of 87 on books, where nothing leaves 142, for one BERT-like model, and above
4,000,000 with any method for another (docs/results.md); with ranges of tokens (--config.activation_mode=dynamic) 24.0,
where nothing leaves 28.7 and full precision has 22.5.
"""

from configs.ptq import outlier_suppression_bert_w6a6


def get_config():
  """The configuration."""
  config = outlier_suppression_bert_w6a6.get_config()
  config.update(weights=4, activations=4)
  return config
