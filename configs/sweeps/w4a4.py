"""4-bit weights per output channel and 4-bit activations per token: every method, and compositions of them.

  python -m launch.sweep --rows=configs/sweeps/w4a4.py:opt --model=DIR --text=FILE --workdir=OUT

The argument is the kind of the model, opt (LayerNorm, folds at norms alone) or llama (RMSNorm, the default). The rows
`8-bit` tell which operand limits the others, those in groups what finer scales of both are worth.
"""

import itertools

from configs.ptq import outlier_suppression_w4a4

_SCALINGS = ((), ('smooth_quant',), ('awq',), ('aqas',), ('outlier_suppression',),
             ('smooth_quant', 'outlier_suppression'))
_ROUNDINGS = (('round_to_nearest',), ('gptq',), ('clip_search', 'gptq'))


def get_rows(family: str = 'llama'):
  """The configurations by name."""
  def row(methods, **changes):
    config = outlier_suppression_w4a4.get_config(family)
    config.smooth_quant.search = True
    config.update(methods=methods, **changes)
    return config

  rows = {' + '.join(scaling + rounding): row(scaling + rounding)
          for scaling, rounding in itertools.product(_SCALINGS, _ROUNDINGS)}
  for scaling in ('aqas', 'outlier_suppression'):
    rows[f'groups of 128, {scaling} + gptq'] = row((scaling, 'gptq'), group_size=128, activation_group_size=128)
  rows['8-bit weights, outlier_suppression + gptq'] = row(('outlier_suppression', 'gptq'), weights=8)
  rows['8-bit activations, gptq'] = row(('gptq',), activations=8)
  return rows
