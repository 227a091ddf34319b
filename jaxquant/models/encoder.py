"""The encoder of masked language models (BERT, arXiv:1810.04805): attention both ways, and a head of its own.

Paths in the parameter tree: `embedding`, `positions`, `types` (of segments), `layers/<i>/...` as in the decoder,
`final_norm`, and the head: `transform` (a linear layer with the MLP's activation), `transform_norm`, `head`, which
holds a bias and reads the embedding's kernel. With `post_norm`, BERT's embedding norm is `layers/0/attention_norm` and
the norm that ends a block is the first of the next; that of the last block is `final_norm`, where one without a head
ends.
"""

from jaxquant.layers import linear
from jaxquant.layers import norms
from jaxquant.models import blocks
from jaxquant.models import transformer


class Encoder(transformer.Transformer):
  """An encoder, most often with a masked-language-model head; its configuration is not `causal`."""

  def setup(self):
    super().setup()
    if not self.config.head:
      return
    dense = lambda features: linear.Linear(
        features, use_bias=True, implementation=self.implementation, taps=self.taps)
    self.transform = dense(self.config.width)
    self.transform_norm = norms.NORMS[self.config.norm](self.config.norm_epsilon)
    self.head = dense(self.config.vocabulary)

  def hidden(self, x):
    """What sentence embeddings are pooled from: the normalized residual stream after the last block."""
    return self.final_norm(x)

  def logits(self, x):
    """Logits of the residual stream after the last block; without a head, `hidden`."""
    x = self.hidden(x)
    if not self.config.head:
      return x
    x = blocks.ACTIVATIONS[self.config.activation](self.transform(x))
    return self.head(self.transform_norm(x), linear.effective_kernel(self.embedding.tree()))
