"""The decoder: embedding, blocks of attention and MLP on a residual stream, final norm and head.

Paths in the parameter tree: `embedding`, `project_in` (where the embedding is of another width), `positions` (learned
ones), `embedding_norm` (BLOOM), `layers/<i>/{attention_norm, attention, mlp_norm, mlp}`, `final_norm`, `project_out`,
`head`. The same `apply` runs float, simulated-quantized and packed integer trees; layers may differ.
"""

from jaxquant.layers import linear
from jaxquant.models import transformer


class Decoder(transformer.Transformer):
  """A decoder-only language model."""

  def setup(self):
    super().setup()
    if self.config.projected:
      self.project_out = linear.Linear(
          self.config.embedding_width, implementation=self.implementation, taps=self.taps)
    self.head = linear.Linear(self.config.vocabulary, implementation=self.implementation, taps=self.taps)

  def logits(self, x):
    """Logits of the residual stream after the last block."""
    x = self.final_norm(x)
    if self.config.projected:
      x = self.project_out(x)
    return self.head(x, linear.effective_kernel(self.embedding.tree()) if self.config.tied else None)
