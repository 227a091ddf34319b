"""AQAS (arXiv:2311.05161) with clipping and GPTQ: 4-bit weights per output channel, 8-bit activations per token.

  python -m launch.quantize --config=configs/ptq/aqas_w4a8.py --model=DIR --workdir=OUT

The argument is the kind of the model, llama being the default; aqas_w4a8.py:opt fuses norms into the linears that read
them before, as the paper does for OPT alone.

Expected: below rounding to nearest; level with SmoothQuant and AWQ on small models, with norms fused or not
(docs/results.md), below them in the paper. Figures are published with values at 4 bits, too: aqas_w4a8v4 has both. Its
GPTQ is calibrated on 128 windows of 2,048 tokens, as here, its scales on AWQ's 128 of 512; here one set serves both.
"""

from launch import settings

_METHODS = ('aqas', 'clip_search', 'gptq')
_FAMILIES = {'llama': _METHODS, 'opt': ('norm_fusion', *_METHODS)}


def get_config(family: str = 'llama'):
  """The configuration for models like `family`: llama or opt."""
  config = settings.quantize()
  config.methods = settings.of_family(family, _FAMILIES)
  config.clip_pattern = settings.CLIPPED
  config.update(weight_kind='uint', activations=8, activation_mode='dynamic', calibration_windows=128)
  return config
