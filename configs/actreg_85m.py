"""Activation regularization (arXiv:2404.03605) at 85 million non-embedding parameters.

  python -m launch.train --config=configs/actreg_85m.py --workdir=DIR \
    --config.data.train="('books_train.txt.xz','expo_train.txt.xz')" \
    --config.data.validation.expo_valid=expo_valid.txt.xz --config.data.validation.books_valid=books_valid.txt.xz

Corpus: docs/results.md. Hardware: one NVIDIA H200 or H100; 176 to 200 s of training a variant, 24 GB; launches of a
variant take 205 s (`baseline`, H200) and 345 s (`both`, H100). Reached on books and expo, means of three seeds: a
baseline of 46.23 and 32.48 at W16A16, at the best of four learning rates, and `both` at static W4A4 46.47 and 33.23:
1.005 and 1.023 times. Seed 0 of `both` on an H100: 47.18 and 34.09, 1.021 and 1.050 times.
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
