"""AQAS and dINT (arXiv:2311.05161) beside SmoothQuant and AWQ: 4-bit weights, 8-bit activations per token.

  python -m launch.sweep --rows=configs/sweeps/aqas.py:4 --model=DIR --text=FILE --workdir=OUT

The argument is the bits of attention's values: 16 (the default) or 4, which is what the paper has.
"""

import itertools

from configs.ptq import aqas_dint_w4a8
from configs.ptq import aqas_w4a8

_SCALINGS = ((), ('smooth_quant',), ('awq',), ('aqas',), ('norm_fusion', 'aqas'))
_ROUNDINGS = (('round_to_nearest',), ('gptq',))


def get_rows(values: str = '16'):
  """The configurations by name."""
  def row(base, methods):
    config = base.get_config()
    config.update(methods=methods, value_bits=int(values))
    return config

  rows = {}
  for kind, base, scalings in (('int', aqas_w4a8, _SCALINGS), ('dint', aqas_dint_w4a8, ((), ('aqas',)))):
    ways = [scaling + rounding for scaling, rounding in itertools.product(scalings, _ROUNDINGS)]
    for methods in (*ways, ('aqas', 'clip_search', 'gptq'), ('norm_fusion', 'aqas', 'clip_search', 'gptq')):
      rows[f'{kind}, {" + ".join(methods)}'] = row(base, methods)
  return rows
