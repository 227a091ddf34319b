"""The decoder: embedding, blocks of attention and MLP on a residual stream, final norm and head.

Paths in the parameter tree: `embedding`, `positions` (learned ones), `layers/<i>/{attention_norm, attention, mlp_norm,
mlp}`, `final_norm`, `head`. The same `apply` runs float, simulated-quantized and packed integer trees; layers may differ.
"""

import jax.numpy as jnp
from flax import linen as nn

from jaxquant.layers import linear
from jaxquant.layers import norms
from jaxquant.layers import sharding
from jaxquant.layers import tap
from jaxquant.models import blocks
from jaxquant.models import config as model_config


class Decoder(nn.Module):
  """A decoder-only language model.

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
    self.embedding = blocks.Embedding(config.vocabulary, config.width, config.compute_dtype)
    if config.positions == 'learned':
      self.positions = blocks.Embedding(config.max_length, config.width, config.compute_dtype)
    self.layers = blocks.Layers(config, self.implementation, self.taps)
    self.final_norm = norms.NORMS[config.norm](config.norm_epsilon)
    self.head = linear.Linear(config.vocabulary, implementation=self.implementation, taps=self.taps)

  def __call__(self, ids):
    """Logits [batch, tokens, vocabulary], in the compute dtype, of token ids int32 [batch, tokens]."""
    return self.logits(self.layers(self.embed(ids)))

  def embed(self, ids):
    """The residual stream [batch, tokens, width] before the first block."""
    if ids.shape[-1] > self.config.max_length:
      raise ValueError(f'{ids.shape[-1]} tokens exceed the model\'s max_length of {self.config.max_length}')
    x = self.embedding(ids)
    if self.config.positions == 'learned':
      x = x + self.positions(jnp.arange(ids.shape[-1]))
    return sharding.constrain_batch(x)

  def logits(self, x):
    """Logits of the residual stream after the last block."""
    x = self.final_norm(x)
    return self.head(x, linear.effective_kernel(self.embedding.tree()) if self.config.tied else None)
