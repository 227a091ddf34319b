"""The decoder: against a float64 forward that shares no code with it, its initial tree, and trees of codes."""

import functools
import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant.calibration import sites as sites_lib
from jaxquant.models import config as model_config
from jaxquant.models import decoder
from jaxquant.models import staging
from jaxquant.numerics import formats
from jaxquant.numerics import qtensor
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from tests import networks

_OPT = networks.STYLES['opt']
_STYLES = {
    'llama': {},
    'llama, tied': dict(tied=True, rope_theta=100.0),
    'llama, wide heads': dict(head_dim=6, kv_heads=1, norm_epsilon=0.1, layers=2),
    'opt': _OPT,
    'opt, untied': {**_OPT, 'tied': False},
    'gpt2': {**_OPT, 'activation': 'gelu_tanh', 'kv_heads': 4, 'layers': 2},
    'gelu, gated': dict(activation='gelu', bias=True),
}
_GELU = np.vectorize(lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))))
_ACTIVATIONS = {
    'silu': lambda x: x / (1 + np.exp(-x)),
    'relu': lambda x: np.maximum(x, 0),
    'gelu': _GELU,
    'gelu_tanh': lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}


def _config(style: str, **overrides) -> model_config.TransformerConfig:
  sizes = dict(vocabulary=32, width=16, layers=1, heads=4, kv_heads=2, feed_forward=24, max_length=16, dtype='float32')
  return model_config.TransformerConfig(**{**sizes, **_STYLES[style], **overrides})


@functools.cache
def _params(style: str) -> dict:
  """Noise that makes activations of order one."""
  rng = np.random.default_rng(0)
  model = decoder.Decoder(_config(style))
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params']
  noise = lambda path, leaf: (path[-1].key == 'scale') + 0.25 * rng.normal(size=leaf.shape)
  return jax.tree_util.tree_map_with_path(lambda path, leaf: jnp.asarray(noise(path, leaf), leaf.dtype), shapes)


def _normalize(p, x, config):
  x = x - (x.mean(-1, keepdims=True) if config.norm == 'layer' else 0)
  return x / np.sqrt((x * x).mean(-1, keepdims=True) + config.norm_epsilon) * p['scale'] + p.get('bias', 0)


def _rotate(x, theta):
  """Multiplies the complex numbers of features i and i + dim / 2 of x [tokens, heads, dim] by their phases."""
  half = x.shape[-1] // 2
  phases = np.exp(1j * np.outer(np.arange(len(x)), theta ** (-np.arange(half) / half)))[:, None]
  turned = (x[..., :half] + 1j * x[..., half:]) * phases
  return np.concatenate([turned.real, turned.imag], -1)


def _attend(p, x, config):
  dense = lambda name, x: x @ p[name]['kernel'] + p[name].get('bias', 0)
  q, k, v = (dense(name, x).reshape(len(x), -1, config.head_dim) for name in 'qkv')
  if config.positions == 'rotary':
    q, k = (_rotate(a, config.rope_theta) for a in (q, k))
  mixed = np.zeros_like(q)
  for head in range(config.heads):
    shared = head // (config.heads // config.kv_heads)
    scores = q[:, head] @ k[:, shared].T / np.sqrt(config.head_dim)
    weights = np.tril(np.exp(scores))
    mixed[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, shared]
  return dense('o', mixed.reshape(len(x), -1))


def _feed_forward(p, x, config):
  dense = lambda name, x: x @ p[name]['kernel'] + p[name].get('bias', 0)
  activation = _ACTIVATIONS[config.activation]
  hidden = activation(dense('gate', x)) * dense('up', x) if config.gated else activation(dense('up', x))
  return dense('down', hidden)


def _reference(params: dict, config: model_config.TransformerConfig, ids) -> np.ndarray:
  """Logits [tokens, vocabulary] of one sequence, in float64."""
  p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  x = p['embedding']['kernel'][ids]
  if config.positions == 'learned':
    x = x + p['positions']['kernel'][: len(ids)]
  for i in range(config.layers):
    block = p['layers'][str(i)]
    x = x + _attend(block['attention'], _normalize(block['attention_norm'], x, config), config)
    x = x + _feed_forward(block['mlp'], _normalize(block['mlp_norm'], x, config), config)
  return _normalize(p['final_norm'], x, config) @ (p['embedding']['kernel'].T if config.tied else p['head']['kernel'])


def _logits(style: str, params=None, ids=None, **overrides):
  params, ids = params or _params(style), networks.tokens(3) if ids is None else ids
  return networks.evaluator(_config(style, **overrides), jit=networks.quick_jit)(params, ids)


@functools.partial(networks.quick_jit, static_argnames=('names', 'axis'))
def _quantized(params: dict, *, names: tuple[str, ...] = ('int8', 'uint4'), axis: int = -2) -> dict:
  """The tree with codes, of the formats `names` by turns, for every kernel: embeddings and head too."""
  for i, path in enumerate(trees.linears(params)):
    fmt = formats.parse(names[i % len(names)])
    params = trees.put(params, f'{path}/kernel', quantize.quantize(trees.get(params, path)['kernel'], fmt, axis=axis))
  return params


@networks.quick_jit
def _dequantized(params: dict) -> dict:
  is_coded = lambda value: isinstance(value, qtensor.QTensor)
  return trees.map_nodes(lambda path, value: quantize.dequantize(value) if is_coded(value) else value, params)


class ForwardTest(parameterized.TestCase):

  @parameterized.parameters(*_STYLES)
  def test_logits_are_those_of_a_float64_forward(self, style):
    want = np.stack([_reference(_params(style), _config(style), ids) for ids in networks.tokens(3)])
    self.assertGreater(np.abs(want).max(), 1)
    np.testing.assert_allclose(_logits(style), want, atol=1e-5 * np.abs(want).max())

  @parameterized.parameters('llama', 'opt')
  def test_later_tokens_do_not_matter(self, style):
    ids = networks.tokens(3)
    changed = _logits(style, ids=ids.at[:, 5:].set((ids[:, 5:] + 1) % 32))
    np.testing.assert_allclose(changed[:, :5], _logits(style)[:, :5], rtol=1e-6, atol=1e-6)
    self.assertTrue((np.abs(changed - _logits(style)).max(axis=-1)[:, 5:] > 0.01).all())

  @parameterized.parameters('llama', 'opt')
  def test_bfloat16_is_close_to_float32(self, style):
    exact, rounded = _logits(style), _logits(style, dtype='bfloat16')
    self.assertEqual(rounded.dtype, jnp.bfloat16)
    self.assertBetween(np.std(np.float32(rounded) - exact) / np.std(exact), 1e-4, 0.02)

  def test_rematerialization_changes_neither_tree_nor_logits_nor_gradients(self):
    model = lambda remat: decoder.Decoder(_config('llama', remat=remat))

    def loss_and_gradients(remat):
      loss = lambda params: jnp.sum(jnp.sin(model(remat).apply({'params': params}, networks.tokens(3))))
      return networks.quick_jit(jax.value_and_grad(loss))(_trained('llama'))

    shapes = [jax.eval_shape(model(remat).init, jax.random.key(0), networks.tokens(1)) for remat in (False, True)]
    self.assertEqual(*shapes)
    plain, remat = map(loss_and_gradients, (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), plain, remat)
    self.assertGreater(np.abs(plain[1]['layers']['0']['attention']['input']['quantizer'].low), 1e-3)

  def test_longer_sequences_than_the_table_of_positions_are_refused(self):
    with self.assertRaisesRegex(ValueError, "17 tokens exceed the model's max_length of 16"):
      jax.eval_shape(networks.evaluator(_config('llama')), _params('llama'), jnp.zeros((1, 17), jnp.int32))


def _trained(style: str) -> dict:
  """The tree with a learned range at every site."""
  params = _params(style)
  for site in staging.model_sites(_config(style)):
    quantizer = quantizers.ClipQuantizer(jnp.float32(-1), jnp.float32(1.5), 4)
    params = trees.put(params, f'{site.name}/quantizer', quantizer)
  return params


class InitialTreeTest(parameterized.TestCase):

  def _shapes(self, style):
    init = decoder.Decoder(_config(style)).init
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    self.assertEqual(set(shapes), {'params'})
    self.assertTrue(all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes)))
    return {path: leaf.shape for path, leaf in trees.arrays(shapes['params']).items()}

  def test_paths_and_shapes_of_the_llama_style(self):
    self.assertEqual(self._shapes('llama'), {
        'embedding/kernel': (32, 16),
        'layers/0/attention_norm/scale': (16,),
        'layers/0/attention/q/kernel': (16, 16),
        'layers/0/attention/k/kernel': (16, 8),
        'layers/0/attention/v/kernel': (16, 8),
        'layers/0/attention/o/kernel': (16, 16),
        'layers/0/mlp_norm/scale': (16,),
        'layers/0/mlp/gate/kernel': (16, 24),
        'layers/0/mlp/up/kernel': (16, 24),
        'layers/0/mlp/down/kernel': (24, 16),
        'final_norm/scale': (16,),
        'head/kernel': (16, 32),
    })

  def test_paths_and_shapes_of_the_opt_style(self):
    self.assertEqual(self._shapes('opt'), {
        'embedding/kernel': (32, 16),
        'positions/kernel': (16, 16),
        'layers/0/attention_norm/scale': (16,),
        'layers/0/attention_norm/bias': (16,),
        'layers/0/attention/q/kernel': (16, 16),
        'layers/0/attention/q/bias': (16,),
        'layers/0/attention/k/kernel': (16, 8),
        'layers/0/attention/k/bias': (8,),
        'layers/0/attention/v/kernel': (16, 8),
        'layers/0/attention/v/bias': (8,),
        'layers/0/attention/o/kernel': (16, 16),
        'layers/0/attention/o/bias': (16,),
        'layers/0/mlp_norm/scale': (16,),
        'layers/0/mlp_norm/bias': (16,),
        'layers/0/mlp/up/kernel': (16, 24),
        'layers/0/mlp/up/bias': (24,),
        'layers/0/mlp/down/kernel': (24, 16),
        'layers/0/mlp/down/bias': (16,),
        'final_norm/scale': (16,),
        'final_norm/bias': (16,),
    })

  def test_kernels_are_normal_and_those_that_write_the_residual_stream_smaller(self):
    config = _config('opt', width=64, vocabulary=64, max_length=64, feed_forward=64, kv_heads=4, layers=2)
    init = networks.quick_jit(decoder.Decoder(config).init)
    for path, leaf in trees.arrays(init(jax.random.key(1), jnp.zeros((1, 1), jnp.int32))['params']).items():
      if path.endswith('/kernel'):
        small = path.endswith(('/o/kernel', '/down/kernel'))
        np.testing.assert_allclose(np.std(leaf), 0.02 / (2 if small else 1), rtol=0.05, err_msg=path)
        np.testing.assert_allclose(np.mean(leaf), 0, atol=0.002, err_msg=path)
      else:
        np.testing.assert_array_equal(leaf, 1.0 if path.endswith('/scale') else 0.0, err_msg=path)


class SitesTest(parameterized.TestCase):

  @parameterized.parameters(*_STYLES)
  def test_every_linear_reads_one_site_and_producers_exist(self, style):
    config, params = _config(style), _params(style)
    sites = staging.model_sites(config)
    consumers = [path for site in sites for path in site.consumers]
    lookups = {'positions'} if config.tied else {'embedding', 'positions'}
    self.assertCountEqual(consumers, set(trees.linears(params)) - lookups)
    for site in sites:
      self.assertTrue(site.producer is None or trees.get(params, site.producer), site)
      self.assertEqual(site.reads_residual, site.producer is not None and site.producer.endswith('norm'))
      last = [path.rpartition('/')[2] for path in site.consumers]
      self.assertEqual(site.opens_attention, last == ['q', 'k', 'v'], site)

  @parameterized.parameters('llama, wide heads', 'gpt2')
  def test_stages_one_after_the_other_are_the_model(self, style):
    staged, params = staging.staged(_config(style)), _params(style)
    x = staged.embed(params, networks.tokens(3))
    seen = set()
    for path, block in staged.blocks:
      x, activations = networks.quick_jit(block.taps)(trees.get(params, path), x)
      self.assertContainsSubset([site.name for site in block.sites], activations)
      seen |= {f'{path}/{site.name}' if path else site.name for site in block.sites}
    self.assertEqual(seen, {site.name for site in staging.model_sites(_config(style))})
    np.testing.assert_allclose(x, _logits(style), rtol=1e-4, atol=1e-5)


  @parameterized.parameters('llama', 'opt')
  def test_every_site_is_judged_behind_its_specification(self, style):
    params, block = trees.get(_params(style), 'layers/0'), staging.staged(_config(style)).blocks[0][1]
    for site in block.sites:
      features = trees.get(params, site.consumers[0])['kernel'].shape[0]
      x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, features)), jnp.float32)
      halved = trees.put(params, f'{site.name}/scale', jnp.full(features, 2.0))
      for scope in sites_lib.SCOPES:
        want = block.judge(site.name, scope, params, x / 2)
        np.testing.assert_allclose(block.judge(site.name, scope, halved, x), want, rtol=1e-5, atol=1e-6)
        self.assertGreater(np.abs(block.judge(site.name, scope, params, x) - want).max(), 0.01)


class CodesTest(parameterized.TestCase):

  @parameterized.product(style=['llama', 'opt'], axis=[-2, -1])
  def test_codes_in_every_linear_evaluate_as_their_values(self, style, axis):
    params = _quantized(_params(style), axis=axis)
    self.assertLen(trees.linears(params), sum(
        isinstance(value, qtensor.QTensor) for _, value in trees.walk(params)))
    want = _logits(style, _dequantized(params))
    np.testing.assert_allclose(_logits(style, params), want, atol=1e-5 * np.abs(want).max())
    self.assertGreater(np.abs(want - _logits(style)).max(), 0.01)

  def test_integer_products_in_the_tied_head_and_under_rematerialization(self):
    params = _params('llama, tied')
    table = quantize.quantize(params['embedding']['kernel'], formats.parse('int8'), axis=-1)
    params = trees.put(params, 'embedding/kernel', table)
    quantizer = quantizers.DynamicQuantizer(formats.parse('uint8'))
    params = trees.put(params, 'head/input/quantizer', quantizer)
    want = _logits('llama, tied', _dequantized(params))
    for remat in (False, True):
      np.testing.assert_allclose(_logits('llama, tied', params, remat=remat), want, atol=1e-5 * np.abs(want).max())

  def test_rows_of_a_tied_embedding_with_scales_per_feature_refuse_an_integer_head(self):
    params = trees.put(_quantized(_params('llama, tied')), 'head/input/quantizer', quantizers.DynamicQuantizer(
        formats.parse('uint8')))
    with self.assertRaisesRegex(ValueError, 'scales per input channel'):
      _logits('llama, tied', params)

  @parameterized.parameters('llama', 'opt')
  def test_rounding_in_training_computes_what_the_codes_do(self, style):
    params = _params(style)
    want = _logits(style, _quantized(params, names=('int4',)))
    for path in trees.linears(params):
      params = trees.put(params, f'{path}/kernel_quantizer', quantizers.WeightQuantizer(formats.parse('int4')))
    np.testing.assert_allclose(_logits(style, params), want, atol=1e-5 * np.abs(want).max())


if __name__ == '__main__':
  absltest.main()
