"""4-bit weights per output channel and 4-bit activations per token: methods that allow it, and compositions of them.

  python -m launch.sweep --rows=configs/sweeps/w4a4.py:opt --model=DIR --text=FILE --workdir=OUT

The argument is the kind of the model, opt (LayerNorm, folds at norms alone) or llama (RMSNorm, the default). The rows
`8-bit` tell which operand limits the others, those in groups what finer scales of both are worth, those of dINT what
two half steps are worth at the price of two levels. Those `at norms` fold at the same sites, where AWQ and AQAS else
take all that can be folded at, and those `without q and k` clamp neither. AdaDim is absent: its scales of input
channels stand inside the sum over these, which integer activations exclude.

Expected: Outlier Suppression+ ahead on OPT-like models, after SmoothQuant more so; all methods within 1 % of one
another on LLaMA-like ones; each better in groups of 128; dINT ahead of integers by 1 % at most, and by nothing in
groups and in the best composition (docs/results.md).
"""

import itertools

from configs.ptq import outlier_suppression_w4a4
from launch import settings

_SCALINGS = ((), ('smooth_quant',), ('awq',), ('aqas',), ('outlier_suppression',),
             ('smooth_quant', 'outlier_suppression'))
_NORMS = r'.*/(attention|mlp)/input'
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
    rows[f'dint, {scaling} + gptq'] = row((scaling, 'gptq'), weight_kind='dint')
  for scaling in ('awq', 'aqas', 'outlier_suppression') if family == 'llama' else ('awq', 'aqas'):
    rows[f'at norms, {scaling} + gptq'] = at_norms = row((scaling, 'gptq'))
    at_norms[scaling].site_pattern = _NORMS
  best = ('smooth_quant', 'outlier_suppression', 'clip_search', 'gptq')
  rows[f'without q and k, {" + ".join(best)}'] = row(best, clip_pattern=settings.CLIPPED)
  rows[f'dint, {" + ".join(best)}'] = row(best, weight_kind='dint')
  rows['groups of 128, dint, outlier_suppression + gptq'] = row(
      ('outlier_suppression', 'gptq'), weight_kind='dint', group_size=128, activation_group_size=128)
  rows['8-bit weights, outlier_suppression + gptq'] = row(('outlier_suppression', 'gptq'), weights=8)
  rows['8-bit activations, gptq'] = row(('gptq',), activations=8)
  return rows
