"""Mixed precision: 2, 4 or 8 bits for each linear, at most what 4 bits take in groups of 64 inputs; rounded by GPTQ.

  python -m launch.quantize --config=configs/ptq/allocation_gptq_w4a16_g64.py --model=DIR --workdir=OUT

Every linear is scored on each grid by the second-order change of the model's loss (transforms.sensitivity), which takes
one gradient of the whole model for a window; --config.allocation.score=layer_errors scores by the relative error of its
output, block by block, which needs none. Then the sum of the scores is made as small as the budget allows
(transforms.allocation). Bits are traded between all blocks, so that the whole model is held in floats, which no other
configuration of a model directory needs. 4.5 is what int4 stores with a float32 scale for 64 weights, so that 4 bits
for all is one of the allocations.

Expected: the table that is said, and decisions.json, give a grid to each linear; the sum of their scores is no larger
than that of 4 bits for all in the same memory. On a LLaMA-like model of 26 million parameters, where 4 bits for all
have a perplexity of 48.3 and 2 bits of 97.9, a budget of 3.5 gives 55.0, by errors of layers 71.0; at 4.5 either gives
4 bits to all (docs/results.md). Compare with --config.allocation.candidates="('int4',)".
"""

from launch import settings


def get_config():
  """The configuration."""
  config = settings.quantize()
  config.methods = ('gptq',)
  config.update(activations=16, group_size=64, calibration_windows=128)
  config.allocation.update(bits=4.5, score='loss')
  return config
