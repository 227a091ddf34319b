"""The decoder: embedding, blocks of attention and MLP on a residual stream, final norm and head.

Paths in the parameter tree: `embedding`, `positions` (learned ones), `layers/<i>/{attention_norm, attention, mlp_norm,
mlp}`, `final_norm`, `head`. The same `apply` runs float, simulated-quantized and packed integer trees; layers may differ.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxquant.calibration import sites
from jaxquant.layers import attention
from jaxquant.layers import inputs
from jaxquant.layers import linear
from jaxquant.layers import norms
from jaxquant.layers import sharding
from jaxquant.layers import tap
from jaxquant.models import config as model_config
from jaxquant.numerics import trees

_ACTIVATIONS = {
    'silu': jax.nn.silu,
    'relu': jax.nn.relu,
    'gelu': functools.partial(jax.nn.gelu, approximate=False),
    'gelu_tanh': functools.partial(jax.nn.gelu, approximate=True),
}


class MLP(nn.Module):
  """The feed-forward half of a block; `gate` and `up` share the specification `input`."""

  config: model_config.DecoderConfig
  implementation: str = 'simulated'
  taps: tuple[tap.Tap, ...] = ()

  @nn.compact
  def __call__(self, x):
    config = self.config
    dense = lambda features, name, **kwargs: linear.Linear(
        features, use_bias=config.bias, implementation=self.implementation, taps=self.taps, name=name, **kwargs)
    prepared = tap.prepare(self, self.taps, self.variables.get('params', {}).get('input'), x)
    activation = _ACTIVATIONS[config.activation]
    up = dense(config.feed_forward, 'up')(prepared)
    if config.gated:
      gate = dense(config.feed_forward, 'gate')(prepared)
      hidden = inputs.Pending(lambda gate, up: activation(gate) * up, (gate, up))
    else:
      hidden = inputs.Pending(activation, (up,))
    return dense(config.width, 'down', initializer=_residual_initializer(config))(hidden)


def _attention(config, implementation, taps, **kwargs) -> attention.Attention:
  return attention.Attention(
      heads=config.heads, kv_heads=config.kv_heads, head_dim=config.head_dim, width=config.width,
      use_bias=config.bias, rope_theta=config.rope_theta if config.positions == 'rotary' else None,
      backend=config.attention_backend, implementation=implementation, taps=taps,
      output_initializer=_residual_initializer(config), **kwargs)


class Block(nn.Module):
  """x + attention(norm(x)), then x + mlp(norm(x))."""

  config: model_config.DecoderConfig
  implementation: str = 'simulated'
  taps: tuple[tap.Tap, ...] = ()

  @nn.compact
  def __call__(self, x):
    config = self.config
    norm = lambda name: norms.NORMS[config.norm](config.norm_epsilon, name=name)
    x = x + _attention(config, self.implementation, self.taps, name='attention')(norm('attention_norm')(x))
    x = x + MLP(config, self.implementation, self.taps, name='mlp')(norm('mlp_norm')(x))
    return sharding.constrain_batch(x)


class Layers(nn.Module):
  """The blocks, named by their index."""

  config: model_config.DecoderConfig
  implementation: str = 'simulated'
  taps: tuple[tap.Tap, ...] = ()

  @nn.compact
  def __call__(self, x):
    block = nn.remat(Block) if self.config.remat else Block
    for i in range(self.config.layers):
      x = block(self.config, self.implementation, self.taps, name=str(i))(x)
    return x


class Embedding(nn.Module):
  """A table of rows; the float table is created as `kernel`, so that it is a linear layer like the others."""

  rows: int
  features: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, ids):
    return linear.embed(self.tree(), ids, self.dtype)

  @nn.compact
  def tree(self):
    """The layer's subtree, creating it while initializing."""
    if self.is_initializing() and not self.has_variable('params', 'kernel'):
      self.param('kernel', nn.initializers.normal(0.02), (self.rows, self.features), jnp.float32)
    return dict(self.variables['params'])


class Decoder(nn.Module):
  """A decoder-only language model.

  Attributes:
    config: the architecture.
    implementation: how codes meet codes (layers.linear): `simulated` or `xla`, the same bits.
    taps: statistics to read (layers.tap).
  """

  config: model_config.DecoderConfig
  implementation: str = 'simulated'
  taps: tuple[tap.Tap, ...] = ()

  def setup(self):
    config = self.config
    self.embedding = Embedding(config.vocabulary, config.width, config.compute_dtype)
    if config.positions == 'learned':
      self.positions = Embedding(config.max_length, config.width, config.compute_dtype)
    self.layers = Layers(config, self.implementation, self.taps)
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


def block_sites(config: model_config.DecoderConfig) -> tuple[sites.Site, ...]:
  """The sites of a block, paths relative to it."""
  expand = ('mlp/gate', 'mlp/up') if config.gated else ('mlp/up',)
  shifts = config.norm == 'layer'
  # A positive scale of `up` passes through a product with the gate, and through a ReLU.
  scales_pass = config.gated or config.activation == 'relu'
  return (
      sites.Site('attention/input', 'attention_norm', ('attention/q', 'attention/k', 'attention/v'), True, shifts=shifts),
      # Probabilities sum to one, so that a shift of the values passes through the mix, too.
      sites.Site('attention/o/input', 'attention/v', ('attention/o',), shifts=config.bias,
                 repeats=config.heads // config.kv_heads, run=config.head_dim),
      sites.Site('mlp/input', 'mlp_norm', expand, True, shifts=shifts),
      sites.Site('mlp/down/input', 'mlp/up' if scales_pass else None, ('mlp/down',)),
  )


def model_sites(config: model_config.DecoderConfig) -> tuple[sites.Site, ...]:
  """The sites of the whole model, paths from the root; the head's input is the last."""
  prefixed = lambda i, site: site._replace(
      name=f'layers/{i}/{site.name}', producer=site.producer and f'layers/{i}/{site.producer}',
      consumers=tuple(f'layers/{i}/{c}' for c in site.consumers))
  blocks = [prefixed(i, site) for i in range(config.layers) for site in block_sites(config)]
  head = sites.Site('head/input', 'final_norm', ('embedding' if config.tied else 'head',), True)
  return (*blocks, head)


def _residual_initializer(config):
  """Output projections start smaller, so that the residual stream does not grow with depth (GPT-2)."""
  return nn.initializers.normal(0.02 / (2 * config.layers) ** 0.5)


@functools.cache
def staged(config: model_config.DecoderConfig, implementation: str = 'simulated') -> sites.StagedModel:
  """The decoder cut into blocks for the calibration driver; the last stage is the final norm and head."""
  every = (tap.Tap('.*input', lambda x: x),)
  model = Decoder(config, implementation)
  block = Block(config, implementation)
  tapped_block, tapped_model = Block(config, implementation, every), Decoder(config, implementation, every)

  def observe(module, params, x, **kwargs):
    y, recorded = module.apply({'params': params}, x, mutable=[tap.COLLECTION], **kwargs)
    return y, tap.by_point(recorded[tap.COLLECTION])

  last_input = (tap.Tap('(o|down)/input', lambda x: x),)
  modules = {'attention': lambda taps: _attention(config, implementation, taps),
             'mlp': lambda taps: MLP(config, implementation, taps)}

  def judge(site, scope, params, x):
    site = layer.site(site)
    module = site.name.partition('/')[0]
    if scope == 'linears' or site.name != f'{module}/input':
      prepared = inputs.prepare(trees.get(params, site.name), x)
      outputs = [linear.linear(layer, prepared if len(site.consumers) > 1 else x, implementation=implementation)
                 for layer in (trees.get(params, path) for path in site.consumers)]
      return jnp.concatenate(outputs, axis=-1)
    variables = {'params': params[module]}
    if scope == 'module':
      return modules[module](()).apply(variables, x)
    recorded = modules[module](last_input).apply(variables, x, mutable=[tap.COLLECTION])[1]
    return next(iter(tap.by_point(recorded[tap.COLLECTION]).values()))

  layer = sites.Block(
      block_sites(config),
      lambda params, x: block.apply({'params': params}, x),
      lambda params, x: observe(tapped_block, params, x),
      judge)
  head = sites.Block(
      (model_sites(config)[-1],),
      lambda params, x: model.apply({'params': params}, x, method='logits'),
      lambda params, x: observe(tapped_model, params, x, method='logits'))
  layers = tuple((f'layers/{i}', layer) for i in range(config.layers))
  return sites.StagedModel(
      lambda params, ids: model.apply({'params': params}, ids, method='embed'), (*layers, ('', head)))
