"""Causal attention with grouped keys and values, and its quantized operands, against float64."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant.layers import attention
from jaxquant.layers import inputs
from jaxquant.layers import positions
from jaxquant.numerics import formats
from jaxquant.numerics import quantizers
from kernels import attention as kernel
from tests import gpus
from tests import networks

_BATCH, _TOKENS, _HEADS, _KV_HEADS, _DIM = 2, 7, 4, 2, 6
_WIDTH = 12
_ENDS = {'query': (-2.0, 1.5), 'key': (-1.0, 1.0), 'value': (-1.2, 2.0), 'probabilities': (0.0, 0.9)}
_NONE = dict.fromkeys(attention.OPERANDS)


def _random(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _clip(x, low: float, high: float) -> np.ndarray:
  """Four-bit levels from `low` to `high`, in float64."""
  step = (high - low) / 15
  return low + step * np.round((np.clip(x, low, high) - low) / step)


def _reference(q, k, v, quantized=()) -> np.ndarray:
  """Attention [batch, tokens, heads, dim] in float64, one head and query at a time."""
  level = lambda name, x: _clip(x, *_ENDS[name]) if name in quantized else x
  q, k, v = (level(name, np.float64(x)) for name, x in zip(('query', 'key', 'value'), (q, k, v)))
  out = np.zeros_like(q)
  for b, t, h in np.ndindex(q.shape[:3]):
    shared = h // (q.shape[2] // k.shape[2])
    scores = k[b, : t + 1, shared] @ q[b, t, h] / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max())
    out[b, t, h] = level('probabilities', weights / weights.sum()) @ v[b, : t + 1, shared]
  return out


def _qkv(dtype=jnp.float32):
  shapes = ((_BATCH, _TOKENS, heads, _DIM) for heads in (_HEADS, _KV_HEADS, _KV_HEADS))
  return [jnp.asarray(_random(*shape, seed=seed), dtype) for seed, shape in enumerate(shapes)]


def _specifications(*names):
  node = lambda name: quantizers.ClipQuantizer(*map(jnp.float32, _ENDS[name]), 4)
  return _NONE | {name: {'quantizer': node(name)} for name in names}


def _quantize_and_attend(q, k, v, specifications, backend):
  q, k, v = (inputs.prepare(specifications[name], a).values for name, a in zip(attention.OPERANDS, (q, k, v)))
  return attention.attend(q, k, v, specifications['probabilities'], backend)


_attend = networks.quick_jit(_quantize_and_attend, static_argnames='backend')


class AttendTest(parameterized.TestCase):

  def test_values_are_those_of_a_float64_reference(self):
    np.testing.assert_allclose(_attend(*_qkv(), _NONE, 'auto'), _reference(*_qkv()), atol=2e-6)

  @parameterized.parameters(*((name,) for name in attention.OPERANDS), attention.OPERANDS)
  def test_each_operand_is_quantized_by_its_specification(self, *names):
    got = _attend(*_qkv(), _specifications(*names), 'auto')
    np.testing.assert_allclose(got, _reference(*_qkv(), names), atol=1e-5)
    self.assertGreater(np.abs(got - _reference(*_qkv())).max(), 0.01)

  @parameterized.parameters('float32', 'bfloat16')
  def test_a_specification_that_changes_no_value_changes_nothing(self, dtype):
    plain, got = (_attend(*_qkv(dtype), dict.fromkeys(attention.OPERANDS, specification), 'auto')
                  for specification in (None, {'scale': jnp.float32(1)}))
    self.assertEqual(got.dtype, dtype)
    tolerance = 1e-6 if dtype == 'float32' else 0.02
    np.testing.assert_allclose(np.float32(got), np.float32(plain), atol=tolerance, rtol=tolerance)

  def test_gradients_reach_the_ranges_of_all_operands(self):
    loss = lambda specifications: jnp.sum(_quantize_and_attend(*_qkv(), specifications, 'auto') ** 2)
    gradients = networks.quick_jit(jax.grad(loss))(_specifications(*attention.OPERANDS))
    for name in attention.OPERANDS:
      quantizer = gradients[name]['quantizer']
      ends = (quantizer.high,) if name == 'probabilities' else (quantizer.low, quantizer.high)
      self.assertTrue(all(abs(end) > 1e-3 for end in ends), name)


class AttentionTest(parameterized.TestCase):

  def _module(self, rope_theta):
    return attention.Attention(
        heads=_HEADS, kv_heads=_KV_HEADS, head_dim=_DIM, width=_WIDTH, use_bias=True, output_bias=True,
        rotation=rope_theta and positions.Rotation(rope_theta),
        output_initializer=jax.nn.initializers.normal(0.5))

  def _reference(self, params, x, rope_theta, quantized=()):
    project = lambda name, x: np.asarray(x, np.float64) @ params[name]['kernel'] + params[name]['bias']
    heads = lambda name: np.reshape(project(name, x), (_BATCH, _TOKENS, -1, _DIM))
    q, k, v = map(heads, 'qkv')
    if rope_theta:
      angles = positions.rotary_angles(jnp.arange(_TOKENS), _DIM, positions.Rotation(rope_theta))
      q, k = (kernel.rotate(jnp.float32(a), angles) for a in (q, k))
    return project('o', _reference(q, k, v, quantized).reshape(_BATCH, _TOKENS, -1))

  def _params(self):
    shapes = {'q': (_WIDTH, 24), 'k': (_WIDTH, 12), 'v': (_WIDTH, 12), 'o': (24, _WIDTH)}
    noise = lambda seed, *shape: jnp.asarray(_random(*shape, seed=seed))
    return {name: {'kernel': 0.3 * noise(seed, *shape), 'bias': noise(9 + seed, shape[1])}
            for seed, (name, shape) in enumerate(shapes.items())}

  @parameterized.product(rope_theta=[None, 100.0], quantized=[(), attention.OPERANDS])
  def test_module_projects_rotates_quantizes_and_attends_in_this_order(self, rope_theta, quantized):
    x, params = jnp.asarray(_random(_BATCH, _TOKENS, _WIDTH)), self._params()
    tree = params | {name: value for name, value in _specifications(*quantized).items() if value}
    got = networks.quick_jit(self._module(rope_theta).apply)({'params': tree}, x)
    np.testing.assert_allclose(got, self._reference(params, x, rope_theta, quantized), atol=1e-5)

  def test_input_of_the_site_is_that_of_all_three_projections(self):
    x, params = jnp.asarray(_random(_BATCH, _TOKENS, _WIDTH)), self._params()
    specification = {'quantizer': quantizers.DynamicQuantizer(formats.parse('uint4'))}
    apply = networks.quick_jit(self._module(None).apply)
    shared = apply({'params': params | {'input': specification}}, x)
    own = apply({'params': params | {name: {**params[name], 'input': specification} for name in 'qkv'}}, x)
    np.testing.assert_array_equal(shared, own)
    quantized = inputs.prepare(specification, x).values
    np.testing.assert_allclose(shared, self._reference(params, quantized, None), atol=1e-5)

  def test_initial_tree_holds_four_linears(self):
    shapes = jax.eval_shape(self._module(None).init, jax.random.key(0), jnp.zeros((1, 2, _WIDTH)))['params']
    self.assertEqual(jax.tree.map(lambda leaf: leaf.shape, shapes),
                     jax.tree.map(lambda leaf: leaf.shape, self._params()))

  @parameterized.parameters(64, 63)
  @gpus.needed
  def test_the_backend_of_a_gpu_has_gradients_for_any_number_of_tokens(self, tokens):
    operands = [jnp.asarray(_random(2, tokens, 2, 64, seed=seed), jnp.bfloat16) for seed in range(3)]

    def gradients(backend):
      loss = lambda q, k, v: jnp.sum(attention.attend(q, k, v, None, backend).astype(jnp.float32) ** 2)
      return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*operands)

    for got, want in zip(gradients('auto'), gradients('xla')):
      np.testing.assert_allclose(np.asarray(got, np.float32), np.asarray(want, np.float32), atol=0.1, rtol=0.05)


if __name__ == '__main__':
  absltest.main()
