"""AdaDim (arXiv:2309.15531): groups of 128 along inputs, along outputs, or chosen linear by linear, at 3 and 4 bits.

  python -m launch.sweep --rows=configs/sweeps/adadim.py --model=DIR --text=FILE --workdir=OUT

Expected: chosen linear by linear below either axis for all with rounding to nearest, level with the better one with
GPTQ; less of it at 4 bits (docs/results.md). `axis` in the decisions of results.json says which a linear took, 1 for a
scale per input channel: a good half of them.
"""

import itertools

from configs.ptq import adadim_gptq_w3a16_g128
from configs.ptq import adadim_rtn_w3a16_g128

_ROUNDINGS = {'round_to_nearest': adadim_rtn_w3a16_g128, 'gptq': adadim_gptq_w3a16_g128}
_AXES = {'along inputs': {}, 'along outputs': {'group_along': 'outputs'}, 'adadim': None}


def get_rows():
  """The configurations by name."""
  rows = {}
  for bits, (rounding, base), (axis, changes) in itertools.product((3, 4), _ROUNDINGS.items(), _AXES.items()):
    config = base.get_config()
    config.update(weights=bits, calibration_windows=128)
    if changes is not None:
      config.update(methods=(rounding,), **changes)
    rows[f'{bits} bits, {rounding}, {axis}'] = config
  return rows
