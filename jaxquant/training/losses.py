"""Cross entropy of next-token predictions."""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def cross_entropy(logits, targets):
  """Negative log likelihood of every target.

  Args:
    logits: [..., vocabulary], any floating dtype; the reductions are float32.
    targets: int [...].

  Returns:
    float32 [...], in nats. The gradient is written in the dtype of the logits, and only they and one float32 a token
    are kept for it.
  """
  return _forward(logits, targets)[0]


def _forward(logits, targets):
  wide = logits.astype(jnp.float32)
  normalizer = jax.nn.logsumexp(wide, axis=-1)
  chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0].astype(jnp.float32)
  return normalizer - chosen, (logits, targets, normalizer)


def _backward(saved, gradient):
  logits, targets, normalizer = saved
  probabilities = jnp.exp(logits.astype(jnp.float32) - normalizer[..., None])
  hot = targets[..., None] == jnp.arange(logits.shape[-1])
  return ((probabilities - hot) * gradient[..., None]).astype(logits.dtype), None


cross_entropy.defvjp(_forward, _backward)
