"""Outlier Suppression+ (arXiv:2304.09145) on BERT, its INT6: weights per output channel, activations static per tensor.

  python -m launch.quantize --config=configs/ptq/outlier_suppression_bert_w6a6.py --model=DIR --workdir=OUT

It folds at the outputs of the norms, and undoes the fold for the residual branches, which read these outputs in
post-norm blocks. Expected: closer to full precision than without a method; how close, the inputs of o and down decide,
which no fold reaches. Measured so on two of four BERT-like models, and on one text of two on the others
(docs/results.md).
Published for BERT-base, average of GLUE at full precision 83.8: Outlier Suppression 81.2, Outlier Suppression+ 82.8.
The paper's ranges on BERT are clipped token by token besides; here they are averages of extrema, as for OPT.
"""

from configs.ptq import outlier_suppression_w6a6


def get_config():
  """The configuration."""
  return outlier_suppression_w6a6.get_config('opt')
