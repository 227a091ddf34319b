"""Activation regularization (arXiv:2404.03605) at 205 million non-embedding parameters.

  python -m launch.train --config=configs/actreg_200m.py --workdir=DIR \
    --config.data.train="('books_train.txt.xz','expo_train.txt.xz')" \
    --config.data.validation.expo_valid=expo_valid.txt.xz --config.data.validation.books_valid=books_valid.txt.xz

Corpus: docs/results.md. Hardware: one NVIDIA H200; 369 s of training and 33 GB (`baseline`), 376 s and 41 GB (`both`);
launches of a variant, evaluated at one and at three precisions, take 460 s and 535 s. Reached on books and expo, one
run each, seed 0: a baseline of 46.57 and 32.15 at W16A16, at the best learning rate tried, and `both` at static W4A4
45.85 and 32.10: 0.985 and 0.998 times. With `--config.qat.weight_bits=16`, a clip search and GPTQ after training, 46.00
and 31.73: 0.988 and 0.987 times.
"""

from configs import actreg_26m


def get_config():
  """The configuration."""
  config = actreg_26m.get_config()
  config.name = 'actreg_200m'
  config.variants = ('baseline', 'both')
  config.model.update(width=1024, layers=16, heads=16, feed_forward=2816)
  config.optimizer.learning_rate = 1e-3
  config.training.save_every = 500  # a run that is cut goes on from here
  return config
