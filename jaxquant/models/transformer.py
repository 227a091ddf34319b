"""What decoders and encoders share: embeddings, blocks on a residual stream, and the final norm."""

import functools

import jax.numpy as jnp
from flax import linen as nn

from jaxquant.layers import linear
from jaxquant.layers import norms
from jaxquant.layers import sharding
from jaxquant.layers import tap
from jaxquant.models import blocks
from jaxquant.models import config as model_config


class Transformer(nn.Module):
  """A transformer but for its head; subclasses add `logits`.

  Attributes:
    config: the architecture.
    implementation: how codes meet codes (layers.linear): `simulated` or `xla`, the same bits.
    taps: statistics to read (layers.tap).
  """

  config: model_config.TransformerConfig
  implementation: str = 'simulated'
  taps: tuple[tap.Tap, ...] = ()

  def setup(self):
    config = self.config
    table = lambda rows, features=config.width: blocks.Embedding(rows, features, config.compute_dtype)
    self.embedding = table(config.vocabulary, config.embedding_width)
    if config.positions == 'learned':
      self.positions = table(config.max_length)
    if config.token_types:
      self.types = table(config.token_types)
    norm = functools.partial(norms.NORMS[config.norm], config.norm_epsilon)
    if config.embedding_norm:
      self.embedding_norm = norm()
    if config.projected:
      self.project_in = linear.Linear(config.width, implementation=self.implementation, taps=self.taps)
    self.layers = blocks.Layers(config, self.implementation, self.taps)
    self.final_norm = norm()

  def __call__(self, ids):
    """Logits [batch, tokens, vocabulary], in the compute dtype, of token ids int32 [batch, tokens]."""
    return self.logits(self.layers(self.embed(ids)))

  def embed(self, ids, positions=None):
    """The residual stream [batch, tokens, width] before the first block; every token is of the first type.

    Args:
      ids: int32 [batch, tokens].
      positions: int32 [batch, tokens]; None: 0, 1, ...
    """
    if ids.shape[-1] > self.config.max_length:
      raise ValueError(f'{ids.shape[-1]} tokens exceed the model\'s max_length of {self.config.max_length}')
    x = self.embedding(ids)
    if self.config.projected:
      x = self.project_in(x)
    if self.config.positions == 'learned':
      places = jnp.arange(ids.shape[-1]) if positions is None else positions
      # What fills a batch up may stand beyond the table, where a look-up gives NaN.
      x = x + self.positions(jnp.minimum(places, self.config.max_length - 1))
    if self.config.token_types:
      x = x + self.types(jnp.zeros((), jnp.int32))
    if self.config.embedding_norm:
      x = self.embedding_norm(x)
    return sharding.constrain_batch(x)
