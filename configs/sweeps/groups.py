"""Weights in groups: scales in floats or on two levels (arXiv:2405.04532), and bits by linear under a budget.

  python -m launch.sweep --rows=configs/sweeps/groups.py --model=DIR --text=FILE --workdir=OUT

A budget of 4.5 bits a weight is what 4 bits take in groups of 64, 2.5 what 2 bits take; 3.5 lies between.
"""

import itertools

from configs.ptq import allocation_gptq_w4a16_g64
from configs.ptq import rtn_w4a16_g64

_METHODS = 'round_to_nearest', 'gptq'
# Bits a weight, what scores, and the candidates.
_BUDGETS = ((4.5, 'layer_errors', ('int4',)), (2.5, 'layer_errors', ('int2',)),
            *itertools.product((4.5, 3.5), ('layer_errors', 'loss'), [('int2', 'int4', 'int8')]))


def get_rows():
  """The configurations by name."""
  rows = {}
  for group, method, two_level in itertools.product((128, 32), _METHODS, (False, True)):
    config = rtn_w4a16_g64.get_config()
    config.update(methods=(method,), group_size=group, two_level=two_level, calibration_windows=128)
    config.gptq.static_groups = True  # which two levels need
    rows[f'groups of {group}, {method}, {"two levels" if two_level else "floats"}'] = config
  for bits, score, candidates in _BUDGETS:
    config = allocation_gptq_w4a16_g64.get_config()
    config.allocation.update(bits=bits, score=score, candidates=candidates)
    rows[f'{bits} bits a weight of {" ".join(candidates)}, {score}'] = config
  return rows
