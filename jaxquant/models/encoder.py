"""The encoder of masked language models (BERT, arXiv:1810.04805): attention both ways, and a head of its own.

Paths in the parameter tree: `embedding`, `positions`, `types` (of segments), `layers/<i>/...` as in the decoder,
`final_norm`, and the head: `transform` (a linear layer with the MLP's activation), `transform_norm`, `head`, which holds
a bias and reads the embedding's kernel. With `post_norm`, BERT's embedding norm is `layers/0/attention_norm` and the norm
that ends a block is the first of the next; that of the last block is `final_norm`.
"""

import jax.numpy as jnp
from flax import linen as nn

from jaxquant.layers import linear
from jaxquant.layers import norms
from jaxquant.layers import sharding
from jaxquant.layers import tap
from jaxquant.models import blocks
from jaxquant.models import config as model_config


class Encoder(nn.Module):
  """An encoder with a masked-language-model head.

  Attributes:
    config: the architecture, not `causal`.
    implementation: how codes meet codes (layers.linear).
    taps: statistics to read (layers.tap).
  """

  config: model_config.TransformerConfig
  implementation: str = 'simulated'
  taps: tuple[tap.Tap, ...] = ()

  def setup(self):
    config = self.config
    table = lambda rows: blocks.Embedding(rows, config.width, config.compute_dtype)
    dense = lambda features: linear.Linear(
        features, use_bias=True, implementation=self.implementation, taps=self.taps)
    self.embedding = table(config.vocabulary)
    if config.positions == 'learned':
      self.positions = table(config.max_length)
    if config.token_types:
      self.types = table(config.token_types)
    self.layers = blocks.Layers(config, self.implementation, self.taps)
    self.final_norm = norms.NORMS[config.norm](config.norm_epsilon)
    self.transform = dense(config.width)
    self.transform_norm = norms.NORMS[config.norm](config.norm_epsilon)
    self.head = dense(config.vocabulary)

  def __call__(self, ids):
    """Logits [batch, tokens, vocabulary], in the compute dtype, of token ids int32 [batch, tokens]."""
    return self.logits(self.layers(self.embed(ids)))

  def embed(self, ids):
    """The residual stream [batch, tokens, width] before the first block; every token is of the first type."""
    if ids.shape[-1] > self.config.max_length:
      raise ValueError(f'{ids.shape[-1]} tokens exceed the model\'s max_length of {self.config.max_length}')
    x = self.embedding(ids)
    if self.config.positions == 'learned':
      x = x + self.positions(jnp.arange(ids.shape[-1]))
    if self.config.token_types:
      x = x + self.types(jnp.zeros((), jnp.int32))
    return sharding.constrain_batch(x)

  def logits(self, x):
    """Logits of the residual stream after the last block."""
    x = blocks.ACTIVATIONS[self.config.activation](self.transform(self.final_norm(x)))
    return self.head(self.transform_norm(x), linear.effective_kernel(self.embedding.tree()))
