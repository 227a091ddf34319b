"""AWQ (arXiv:2306.00978) in its own setting: weights alone, 4 and 3 bits in groups of 128, beside what it is made of.

  python -m launch.sweep --rows=configs/sweeps/awq.py --model=DIR --text=FILE --workdir=OUT

Expected: AWQ ahead of rounding by a third of what is lost, most of it by its clip search; GPTQ ahead of both
(docs/results.md).
"""

import itertools

from configs.ptq import awq_two_exponents_w4a16_g128
from configs.ptq import awq_w4a16_g128

_WAYS = (('round_to_nearest',), ('clip_search', 'round_to_nearest'), ('awq', 'round_to_nearest'),
         ('awq', 'clip_search', 'round_to_nearest'), ('gptq',), ('awq', 'clip_search', 'gptq'))


def get_rows():
  """The configurations by name."""
  def row(base, bits, methods):
    config = base.get_config()
    config.update(weights=bits, methods=methods)
    return config

  rows = {f'{bits} bits, {" + ".join(methods)}': row(awq_w4a16_g128, bits, methods)
          for bits, methods in itertools.product((4, 3), _WAYS)}
  for bits in (4, 3):
    rows[f'{bits} bits, two exponents'] = row(awq_two_exponents_w4a16_g128, bits, _WAYS[3])
  return rows
