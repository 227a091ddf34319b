"""The decoder: embedding, blocks of attention and MLP on a residual stream, final norm and head.

Paths in the parameter tree: `embedding`, `positions` (learned ones), `layers/<i>/{attention_norm, attention, mlp_norm,
mlp}`, `final_norm`, `head`. The same `apply` runs float, simulated-quantized and packed integer trees; layers may differ.
"""

from jaxquant.layers import linear
from jaxquant.models import transformer


class Decoder(transformer.Transformer):
  """A decoder-only language model."""

  def setup(self):
    super().setup()
    self.head = linear.Linear(self.config.vocabulary, implementation=self.implementation, taps=self.taps)

  def logits(self, x):
    """Logits of the residual stream after the last block."""
    x = self.final_norm(x)
    return self.head(x, linear.effective_kernel(self.embedding.tree()) if self.config.tied else None)
