"""Mixed precision: 2, 4 or 8 bits for each linear, at most what 4 bits take in groups of 64 inputs; rounded by GPTQ.

  python -m launch.quantize --config=configs/ptq/allocation_gptq_w4a16_g64.py --model=DIR --workdir=OUT

Every linear is scored on each grid by the relative error of its output (transforms.sensitivity), which needs no
gradient; --config.allocation.score=loss scores by the second-order change of the model's loss instead, which does, and
counts a linear by what its output is for. Then the sum of the scores is made as small as the budget allows
(transforms.allocation). 4.5 is what int4 stores with a float32 scale for 64 weights, so that 4 bits for all is one of
the allocations.

Expected: the table that is said, and decisions.json, give a grid to each linear; the sum of their scores is no larger
than that of 4 bits for all in the same memory. Perplexity follows only as far as the score foretells it: compare with
--config.allocation.candidates="('int4',)".
"""

from launch import settings


def get_config():
  """The configuration."""
  config = settings.quantize()
  config.methods = ('gptq',)
  config.update(activations=16, group_size=64, calibration_windows=128)
  config.allocation.bits = 4.5
  return config
