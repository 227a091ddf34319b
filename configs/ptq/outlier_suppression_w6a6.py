"""Outlier Suppression+ (arXiv:2304.09145), its INT6: weights per output channel, activations static for the tensor.

  python -m launch.quantize --config=configs/ptq/outlier_suppression_w6a6.py --model=DIR --workdir=OUT

It folds at the outputs of the norms, as published for OPT and BLOOM. The argument is the kind of the model, opt being
the default; those like LLaMA take outlier_suppression_w6a6.py:llama, which folds at what down projections read, too,
and has ranges of tokens instead, as published for them. Expected: closer to full precision than without a method, and
than SmoothQuant with its exponent of 0.5; level with SmoothQuant on OPT-like models where that is searched
(docs/results.md). Perplexity of a LLaMA-like model on books, ranges of tokens: full precision 48.38, nothing 49.09,
SmoothQuant 49.07, Outlier Suppression+ 49.02. Published for OPT-66B on LAMBADA: full precision 73.9, SmoothQuant 0.0,
Outlier Suppression+ 72.7; for LLaMA-7B on WikiText-2, down projections not quantized: full precision 5.68, min-max
6.00, SmoothQuant 5.85, Outlier Suppression+ 5.76, and 5.90 with those quantized. Calibration is published on 128
windows of 512 tokens for OPT (--config.calibration_length=512) and 2,048 for LLaMA.
"""

from launch import settings

# Where the published code folds, and what its ranges are those of.
_FAMILIES = {'opt': (r'.*/(attention|mlp)/input', 'static'), 'llama': (r'.*/(attention|mlp|mlp/down)/input', 'dynamic')}


def get_config(family: str = 'opt'):
  """The configuration for models like `family`: opt or llama."""
  sites, mode = settings.of_family(family, _FAMILIES)
  config = settings.quantize()
  config.methods = ('outlier_suppression', 'round_to_nearest')
  config.outlier_suppression.site_pattern = sites
  config.update(weights=6, weight_kind='uint', activations=6, activation_mode=mode, ranges='average',
                calibration_windows=128)
  return config
