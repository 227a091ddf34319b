"""Outlier Suppression+ (arXiv:2304.09145): shift and scale, apart and together, beside SmoothQuant and nothing.

  python -m launch.sweep --rows=configs/sweeps/outlier_suppression.py:opt --model=DIR --text=FILE --workdir=OUT

The argument is the kind of the model: opt (the default), llama, whose norms take no shift, or bert. The latter two have
ranges of tokens beside those of the tensor, and static ones of 4 bits also without the sites that no norm produces.
For bert, static ranges are clipped token by token besides, as published.
"""

import itertools

from configs.ptq import outlier_suppression_w6a6

_NORMS = r'layers/\d+/(attention|mlp)/input'
_CLIPPED = {4: 70.0, 6: 70.0, 8: 99.0}  # percent of the tokens that keep within a range, by bits


def get_rows(family: str = 'opt'):
  """The configurations by name."""
  def row(bits, **changes):
    config = outlier_suppression_w6a6.get_config('opt' if family == 'bert' else family)
    config.update(weights=bits, activations=bits)
    config.update_from_flattened_dict(changes)
    return config

  rounded, smooth = {'methods': ('round_to_nearest',)}, {'methods': ('smooth_quant', 'round_to_nearest')}
  alone = {'shift alone': {'outlier_suppression.scale': False}, 'scale alone': {'outlier_suppression.shift': False}}
  others = {} if family == 'bert' else {
      'SmoothQuant': smooth, 'SmoothQuant, searched': {**smooth, 'smooth_quant.search': True}}
  ways = {'nothing': rounded, **others, **(alone if family != 'llama' else {}), 'Outlier Suppression+': {}}
  modes = ('static',) if family == 'opt' else ('static', 'dynamic')
  rows = {f'{bits} bits, {mode}, {way}': row(bits, activation_mode=mode, **changes)
          for bits, mode, (way, changes) in itertools.product((4, 6, 8), modes, ways.items())}
  if family != 'opt':
    rows |= {f'4 bits, static at norms, {way}': row(4, activation_mode='static', site_patterns=(_NORMS,), **changes)
             for way, changes in ways.items()}
  if family == 'bert':
    rows |= {f'{bits} bits, token-wise, {way}': row(
        bits, activation_mode='static', ranges='token_wise', percentile=percentile, **changes)
             for (bits, percentile), (way, changes) in itertools.product(_CLIPPED.items(), ways.items())}
  return rows
