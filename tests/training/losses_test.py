"""Cross entropy against Optax, and what it costs in 16 bits."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxquant.training import losses

_TARGETS = jnp.int32([[0, 4, 2], [3, 3, 1]])


def _logits(scale=3.0, dtype=jnp.float32):
  return jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5)) * scale, dtype)


def _value_and_gradient(function, logits):
  """The losses, and the gradient of their sum with unequal weights."""
  weights = jnp.float32([[1, -2, 0.5], [0, 3, 1]])
  loss, pullback = jax.vjp(lambda logits: function(logits, _TARGETS), logits)
  return loss, pullback(weights.astype(loss.dtype))[0]


class CrossEntropyTest(parameterized.TestCase):

  # Logits of thousands would overflow without care.
  @parameterized.parameters(0.1, 3.0, 3000.0)
  def test_values_and_gradients_are_those_of_optax(self, scale):
    got, want = (_value_and_gradient(function, _logits(scale)) for function in (
        losses.cross_entropy, optax.softmax_cross_entropy_with_integer_labels))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), got, want)

  @parameterized.parameters('bfloat16', 'float16')
  def test_narrow_logits_are_reduced_in_float32(self, dtype):
    logits = _logits(dtype=dtype)
    narrow, wide = (_value_and_gradient(losses.cross_entropy, logits.astype(t)) for t in (dtype, 'float32'))
    self.assertEqual([a.dtype for a in narrow], ['float32', dtype])
    np.testing.assert_allclose(narrow[0], wide[0], rtol=1e-6)
    np.testing.assert_array_equal(narrow[1], wide[1].astype(dtype))

  def test_no_wide_copy_of_narrow_logits_is_kept_for_the_backward_pass(self):
    _, pullback = jax.vjp(lambda logits: losses.cross_entropy(logits, _TARGETS), _logits(dtype=jnp.bfloat16))
    kept = [(a.shape, str(a.dtype)) for a in jax.tree.leaves(pullback) if a.shape != _TARGETS.shape]
    self.assertEqual(kept, [((2, 3, 5), 'bfloat16')])

  def test_uniform_logits_cost_the_logarithm_of_the_vocabulary(self):
    np.testing.assert_allclose(losses.cross_entropy(jnp.full((2, 3, 5), 7.0), _TARGETS), np.log(5), rtol=1e-6)


if __name__ == '__main__':
  absltest.main()
