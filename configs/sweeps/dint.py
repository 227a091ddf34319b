"""dINT (arXiv:2311.05161) beside integers at 3 and 4 bits: of weights alone, and of weights and values.

At 4 bits, special values of a quarter and an eighth of a step, too.

  python -m launch.sweep --rows=configs/sweeps/dint.py --model=DIR --text=FILE --workdir=OUT
"""

import itertools

from configs.ptq import aqas_dint_w4a8
from configs.ptq import dint_w4a16_g128

_WAYS = {
    'W{}A16 in groups of 128, rounded': (dint_w4a16_g128, ('round_to_nearest',)),
    'W{}A16 in groups of 128, gptq': (dint_w4a16_g128, ('gptq',)),
    'W{0}A8V{0}, rounded': (aqas_dint_w4a8, ('round_to_nearest',)),
    'W{0}A8V{0}, aqas + clip_search + gptq': (aqas_dint_w4a8, ('aqas', 'clip_search', 'gptq')),
}


def get_rows():
  """The configurations by name."""
  rows = {}
  kinds = [(3, 'uint'), (3, 'dint'), *((4, kind) for kind in ('uint', 'dint', 'dint/4', 'dint/8'))]
  for (bits, kind), (way, (base, methods)) in itertools.product(kinds, _WAYS.items()):
    config = base.get_config()
    config.update(weights=bits, weight_kind=kind, methods=methods, calibration_windows=128)
    if base is aqas_dint_w4a8:
      config.value_bits = bits
    rows[f'{way.format(bits)}, {kind}'] = config
  return rows
