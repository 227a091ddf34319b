"""Outlier Suppression+ (arXiv:2304.09145), its INT6: weights per output channel, activations static for the tensor.

  python -m launch.quantize --config=configs/ptq/outlier_suppression_w6a6.py --model=DIR --workdir=OUT

It folds at the outputs of the norms, as published for OPT and BLOOM; models like LLaMA take
outlier_suppression_w6a6.py:llama, which folds at what down projections read, too. Expected: closer to full precision
than SmoothQuant with the same numbers, and both closer than no method. Published for OPT-66B on LAMBADA: full precision
73.9, SmoothQuant 0.0, Outlier Suppression+ 72.7. Calibration is published on 128 windows of 512 tokens for OPT
(--config.calibration_length=512) and 2,048 for LLaMA.
"""

from jaxquant import errors
from launch import settings

# Where the published code folds.
_SITES = {'opt': r'.*/(attention|mlp)/input', 'llama': r'.*/(attention|mlp|mlp/down)/input'}


def get_config(family: str = 'opt'):
  """The configuration for models like `family`: opt or llama."""
  if family not in _SITES:
    raise errors.UserError(f'no family {family!r}, only {", ".join(_SITES)}')
  config = settings.quantize()
  config.methods = ('outlier_suppression', 'round_to_nearest')
  config.outlier_suppression.site_pattern = _SITES[family]
  config.update(weights=6, weight_kind='uint', activations=6, ranges='average', calibration_windows=128)
  return config
