"""The encoder: against BERT's order of layers written out in float64, its initial tree, and folds of its norms."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant.models import staging
from jaxquant.models import validate
from jaxquant.numerics import trees
from tests import networks

_LAYERS = 2
_CONFIG = networks.config('bert', layers=_LAYERS)
_GELU = np.vectorize(lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))))


def _dense(p, x):
  return x @ p['kernel'] + p['bias']


def _layer_norm(p, x):
  centred = x - x.mean(-1, keepdims=True)
  return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + _CONFIG.norm_epsilon) * p['scale'] + p['bias']


def _attention(p, x):
  q, k, v = (_dense(p[name], x).reshape(len(x), -1, _CONFIG.head_dim) for name in 'qkv')
  mixed = np.zeros_like(q)
  for head in range(_CONFIG.heads):
    shared = head // (_CONFIG.heads // _CONFIG.kv_heads)
    weights = np.exp(q[:, head] @ k[:, shared].T / np.sqrt(_CONFIG.head_dim))
    mixed[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, shared]
  return _dense(p['o'], mixed.reshape(len(x), -1))


def _bert(params: dict, ids) -> np.ndarray:
  """Logits [tokens, vocabulary] of one sequence, float64, in the order of arXiv:1810.04805 and its published code.

  That is, every sum is followed by a norm, embeddings included; here as there, under the names of this library's tree.
  """
  p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  layers = [p['layers'][str(i)] for i in range(_LAYERS)]
  ends = [*(layer['attention_norm'] for layer in layers[1:]), p['final_norm']]
  embedded = p['embedding']['kernel'][ids] + p['positions']['kernel'][: len(ids)] + p['types']['kernel'][0]
  x = _layer_norm(layers[0]['attention_norm'], embedded)
  for layer, end in zip(layers, ends, strict=True):
    x = _layer_norm(layer['mlp_norm'], x + _attention(layer['attention'], x))
    x = _layer_norm(end, x + _dense(layer['mlp']['down'], _GELU(_dense(layer['mlp']['up'], x))))
  x = _layer_norm(p['transform_norm'], _GELU(_dense(p['transform'], x)))
  return x @ p['embedding']['kernel'].T + p['head']['bias']


def _logits(params=None, ids=None) -> np.ndarray:
  evaluate = networks.evaluator(_CONFIG, jit=networks.quick_jit)
  return np.asarray(evaluate(params or _params(), networks.tokens(3) if ids is None else ids))


def _params() -> dict:
  return networks.params('bert', _LAYERS)


class ForwardTest(absltest.TestCase):

  def test_logits_are_those_of_bert_written_out(self):
    want = np.stack([_bert(_params(), ids) for ids in networks.tokens(3)])
    self.assertGreater(np.abs(want).max(), 1)
    np.testing.assert_allclose(_logits(), want, atol=1e-5 * np.abs(want).max())

  def test_every_token_attends_to_those_before_and_behind_it(self):
    ids = networks.tokens(3)
    for place in (0, 7):
      changed = _logits(ids=ids.at[:, place].set((ids[:, place] + 1) % 32))
      self.assertGreater(np.abs(changed - _logits()).max(axis=-1).min(), 1e-4)

  def test_every_array_of_the_tree_is_read(self):
    """Types and the head's bias too; not rows that no token looks up, and biases of keys (constant over scores)."""
    loss = lambda params: jnp.sum(jnp.sin(staging.make(_CONFIG).apply({'params': params}, networks.tokens(3))))
    gradients = trees.arrays(networks.quick_jit(jax.grad(loss))(_params()))
    largest = {path: float(jnp.abs(leaf).max()) for path, leaf in gradients.items()}
    self.assertEqual({path for path, most in largest.items() if most < 1e-4},
                     {f'layers/{i}/attention/k/bias' for i in range(_LAYERS)})
    self.assertEqual(np.count_nonzero(np.any(gradients['types/kernel'] != 0, axis=-1)), 1)

  def test_longer_sequences_than_the_table_of_positions_are_refused(self):
    with self.assertRaisesRegex(ValueError, "17 tokens exceed the model's max_length of 16"):
      jax.eval_shape(networks.evaluator(_CONFIG), _params(), jnp.zeros((1, 17), jnp.int32))


class InitialTreeTest(absltest.TestCase):

  def test_what_an_encoder_has_beside_blocks(self):
    shapes = {path: leaf.shape for path, leaf in trees.arrays(validate.abstract_params(_CONFIG)).items()}
    self.assertEqual({path: shape for path, shape in shapes.items() if not path.startswith('layers/')}, {
        'embedding/kernel': (32, 16),
        'positions/kernel': (16, 16),
        'types/kernel': (2, 16),
        'final_norm/scale': (16,),
        'final_norm/bias': (16,),
        'transform/kernel': (16, 16),
        'transform/bias': (16,),
        'transform_norm/scale': (16,),
        'transform_norm/bias': (16,),
        'head/bias': (32,),
    })


class SitesTest(absltest.TestCase):

  def test_every_linear_reads_one_site_and_producers_exist(self):
    sites = staging.model_sites(_CONFIG)
    consumers = [path for site in sites for path in site.consumers]
    self.assertCountEqual(consumers, set(trees.linears(_params())) - {'positions', 'types'})
    for site in sites:
      self.assertTrue(site.producer is None or trees.get(_params(), site.producer), site)
      self.assertEqual(site.producer is None, site.name.endswith('down/input'))
      self.assertEqual(site.residual is not None, site.name.startswith('layers/') and site.reads_residual)

  def test_stages_one_after_the_other_are_the_model(self):
    staged = staging.staged(_CONFIG)
    x = staged.embed(_params(), networks.tokens(3))
    for path, block in staged.blocks:
      x, activations = networks.quick_jit(block.taps)(trees.get(_params(), path), x)
      self.assertContainsSubset([site.name for site in block.sites], activations)
    np.testing.assert_allclose(x, _logits(), rtol=1e-4, atol=1e-5)


class ResidualTest(parameterized.TestCase):

  @parameterized.parameters('attention', 'mlp')
  def test_a_residual_entry_is_what_its_branch_is_scaled_and_shifted_by(self, module):
    """The norm puts out (x - shift) / scale, which the entry undoes; the branch of the module itself is cut."""
    params, path = _params(), f'layers/1/{module}'
    last = f'{path}/o' if module == 'attention' else f'{path}/down'
    params = trees.put(params, last, jax.tree.map(jnp.zeros_like, trees.get(params, last)))
    norm, scale, shift = trees.get(params, f'{path}_norm'), jnp.linspace(0.5, 3, 16), jnp.linspace(2, -1, 16)
    folded = trees.put(params, f'{path}_norm', {'scale': norm['scale'] / scale, 'bias': (norm['bias'] - shift) / scale})
    self.assertGreater(np.abs(_logits(folded) - _logits(params)).max(), 0.1)
    folded = trees.put(folded, f'{path}_residual', {'scale': scale, 'shift': shift})
    np.testing.assert_allclose(_logits(folded), _logits(params), rtol=1e-4, atol=1e-5)


if __name__ == '__main__':
  absltest.main()
