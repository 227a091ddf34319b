"""Activation regularization (arXiv:2404.03605) at 85 million non-embedding parameters: the final pair.

  python -m launch.train --config=configs/actreg_85m.py --workdir=DIR \
    --config.data.train="('books_train.txt.xz','expo_train.txt.xz')" \
    --config.data.validation.expo_valid=expo_valid.txt.xz --config.data.validation.books_valid=books_valid.txt.xz

Corpus: docs/results.md. Hardware: one NVIDIA H200; 175 to 190 s of training a variant, 24 GB. Reached on books and
expo: a baseline of 46.09 and 32.43 at W16A16, the best of four learning rates, `both` (means of two seeds) of 46.57 and
33.36 at static W4A4, 1.010 and 1.028 times that.
"""

from configs import actreg_26m


def get_config():
  """The configuration."""
  config = actreg_26m.get_config()
  config.name = 'actreg_85m'
  config.variants = ('baseline', 'both')
  config.model.update(width=768, layers=12, heads=12, feed_forward=2048)
  config.optimizer.learning_rate = 1.4e-3
  return config
