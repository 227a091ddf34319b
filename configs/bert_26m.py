"""A BERT-like masked language model (post-norm, GELU) to quantize: 25 million parameters in its blocks.

  python -m launch.train --config=configs/bert_26m.py --workdir=DIR \
    --config.data.train="('books_train.txt.xz','expo_train.txt.xz')" \
    --config.data.validation.expo_valid=expo_valid.txt.xz --config.data.validation.books_valid=books_valid.txt.xz

Then `python -m launch.quantize --model=DIR --config=configs/ptq/METHOD.py ...`. Perplexities are those of hidden tokens
(jaxquant/evaluation/perplexity.py). Corpus: docs/results.md. Hardware: one NVIDIA H100, two minutes of training, 4 GB.
Reached, by five trainings: 22.5 to 24.1 on books and 23.2 to 25.1 on expo; a sixth stayed at 33.7 and 42.6.
"""

from configs import opt_26m


def get_config():
  """The configuration."""
  config = opt_26m.get_config()
  config.name = 'bert_26m'
  config.model.update(activation='gelu', causal=False, post_norm=True, token_types=2, max_length=128)
  # What is hidden is learned in many small steps, and where its neighbors are from many short sequences: the same
  # tokens in 2,500 steps of 96 x 512 at 5e-4 taught no more than how frequent tokens are (perplexity 450). Post-norm
  # blocks train at lower rates only (arXiv:2002.04745).
  config.training.update(steps=10_000, batch_size=96, length=128, log_every=400, save_every=10_000)
  config.optimizer.update(learning_rate=1e-3, warmup_steps=1000)
  return config
