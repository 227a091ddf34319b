"""The quickstart: a small LLaMA-style model on the Python standard library's own documentation.

  ./run python -m launch.train --config=configs/quickstart.py

Trains a baseline and a model with activation regularization (4-bit inputs with learned ranges, output kurtosis), then
compares both from W16A16 to static W4A4.

Hardware: 2 CPU cores. Time: see README. Expected: static W4A4 of `both` close to its own full precision, that of the
baseline far from it.
"""

from launch import settings


def get_config():
  """The configuration."""
  config = settings.train()
  config.name = 'quickstart'
  config.variants = ('baseline', 'both')
  config.model.update(
      vocabulary=2048, width=128, layers=4, heads=4, feed_forward=352, max_length=128, dtype='float32')
  config.data.train = ('standard_library',)
  config.data.validation.documentation = 'standard_library'
  config.training.update(steps=400, batch_size=16, length=128, log_every=50, save_every=200, measurements=8)
  config.optimizer.update(learning_rate=3e-3, warmup_steps=50, schedule='linear')
  config.qat.align_zero = True
  # So few steps do not grow the inputs of o and down to the scale that the default ranges are made for.
  config.qat.ranges = ((r'layers/\d+/(attention|mlp)/input', 3.0), (r'layers/.*', 0.3))
  config.kurtosis.weight = 1e-5
  return config
