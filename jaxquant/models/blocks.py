"""The blocks of a transformer: attention and MLP on a residual stream, and which sites they have."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxquant.calibration import sites
from jaxquant.layers import attention
from jaxquant.layers import device_kernels
from jaxquant.layers import inputs
from jaxquant.layers import linear
from jaxquant.layers import norms
from jaxquant.layers import positions
from jaxquant.layers import sharding
from jaxquant.layers import tap
from jaxquant.models import config as model_config
from kernels import gates

# Nonlinearities by name.
ACTIVATIONS = {
    'silu': jax.nn.silu,
    'relu': jax.nn.relu,
    'gelu': functools.partial(jax.nn.gelu, approximate=False),
    'gelu_tanh': functools.partial(jax.nn.gelu, approximate=True),
}


class MLP(nn.Module):
  """The feed-forward half of a block; `gate` and `up` share the specification `input`."""

  config: model_config.TransformerConfig
  implementation: str = 'simulated'
  taps: tuple[tap.Tap, ...] = ()

  @nn.compact
  def __call__(self, x):
    config = self.config
    dense = lambda features, name, **kwargs: linear.Linear(
        features, use_bias=config.mlp_bias, implementation=self.implementation, taps=self.taps, name=name, **kwargs)
    params = self.variables.get('params', {})
    prepared = x if isinstance(x, inputs.Activation) else tap.prepare(self, self.taps, params.get('input'), x)
    activation = ACTIVATIONS[config.activation]
    gated = lambda gate, up: activation(gate) * up
    joined = 'gate_up' in params  # for a device (layers.device_kernels)
    if joined and not self.taps and config.activation in gates.GATES and self.implementation in device_kernels.OF_GPUS:
      hidden = linear.gated(params['gate_up'], prepared, config.activation, self.implementation)
    elif joined:
      both = dense(2 * config.feed_forward, 'gate_up')(prepared)
      hidden = inputs.Pending(gated, tuple(jnp.split(both, 2, axis=-1)))
    else:
      up = dense(config.feed_forward, 'up')(prepared)
      if config.gated:
        hidden = inputs.Pending(gated, (dense(config.feed_forward, 'gate')(prepared), up))
      else:
        hidden = inputs.Pending(activation, (up,))
    return dense(config.width, 'down', initializer=residual_initializer(config))(hidden)


def make_attention(config, implementation, taps, **kwargs) -> attention.Attention:
  """The attention of a block."""
  return attention.Attention(
      heads=config.heads, kv_heads=config.kv_heads, head_dim=config.head_dim, width=config.width,
      causal=config.causal, use_bias=config.qkv_bias, output_bias=config.output_bias, rotation=rotation(config),
      alibi=config.positions == 'alibi', window=config.sliding_window,
      head_norm_epsilon=config.norm_epsilon if config.head_norm else None, backend=config.attention_backend,
      implementation=implementation, taps=taps,
      output_initializer=residual_initializer(config), **kwargs)


def rotation(config) -> positions.Rotation | None:
  """The rotary frequencies of a configuration, if its positions are such."""
  if config.positions != 'rotary':
    return None
  return positions.Rotation(
      config.rope_theta, config.rope_scaling, config.rope_factor, config.rope_low_factor, config.rope_high_factor,
      config.rope_original_length)


class Block(nn.Module):
  """Pre-norm: x + attention(norm(x)), then x + mlp(norm(x)). Post-norm: the residual branches read the norms' outputs.

  So a post-norm block begins with the norm that ends the block before it: y = norm(x), y + attention(y), and the same
  for the MLP. Each norm then is the producer of its own block's site. Where scales or shifts of such a site were folded
  into the norm, `attention_residual` and `mlp_residual` undo them for the branch: x scale + shift.

  Attributes:
    opening: whether it begins with a norm: all blocks do, but for the first of some post-norm models (OPT-350M).
    summing: whether it gives the array that its last branch is added to, and not a `norms.Sum` for the next block.
  """

  config: model_config.TransformerConfig
  implementation: str = 'simulated'
  taps: tuple[tap.Tap, ...] = ()
  opening: bool = True
  summing: bool = True

  @nn.compact
  def __call__(self, x, positions=None, first=False):
    config = self.config
    for name, make in (('attention', make_attention), ('mlp', MLP)):
      if self.opening or name != 'attention':
        y, x = self._normalized(x, name)
      else:
        y = x = norms.summed(x)
      residual = self._restored(y, f'{name}_residual') if config.post_norm else x
      module = make(config, self.implementation, self.taps, name=name)
      x = norms.Sum(residual, module(y, positions, first) if name == 'attention' else module(y))
    return sharding.constrain_batch(norms.summed(x)) if self.summing else x

  def _normalized(self, x, name):
    """(the norm in front of a half of the block, the array that it is of).

    It is left to its reader if that can compute it and is the only one; with the sum that it is of, if it is of one.
    """
    norm = norms.NORMS[self.config.norm](self.config.norm_epsilon, name=f'{name}_norm')
    reader = self.variables.get('params', {}).get(name, {}).get('input')
    if not inputs.takes_norms(reader) or self.config.post_norm:
      x = norms.summed(x)
      return norm(x), x
    if isinstance(x, norms.Sum) and not self.taps:
      return inputs.prepare_total(reader, norm.normed(x))
    x = norms.summed(x)
    return norm.normed(x), x

  def _restored(self, y, name):
    fold = self.variables.get('params', {}).get(name)
    return y if fold is None else (y * fold['scale'] + fold['shift']).astype(y.dtype)


class Layers(nn.Module):
  """The blocks, named by their index."""

  config: model_config.TransformerConfig
  implementation: str = 'simulated'
  taps: tuple[tap.Tap, ...] = ()

  @nn.compact
  def __call__(self, x, positions=None, first=False):
    # Blocks that are alike are traced once.
    block = nn.jit(nn.remat(Block, static_argnums=(3,)) if self.config.remat else Block, static_argnums=(3,))
    # A step is many short kernels, of which sums need not be some; what trains keeps one array a block.
    summing = positions is None or not sharding.on_one_device()
    for i in range(self.config.layers):
      opening = opens_with_norm(self.config, i)
      taps = tap.within(self.taps, (*self.path, str(i)), _places(self.config))
      x = block(self.config, self.implementation, taps, opening, summing, name=str(i))(x, positions, first)
    return norms.summed(x)


def _places(config) -> list[str]:
  """The modules of a block that have tap points."""
  linears = [path for site in block_sites(config) for path in site.consumers]
  halves = ['attention', 'mlp']
  return [*halves, *linears, *(f'{half}/{joined}' for half in halves for joined in device_kernels.JOINED)]


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


def opens_with_norm(config: model_config.TransformerConfig, index: int) -> bool:
  """Whether the block at `index` begins with a norm."""
  return config.opening_norm or index > 0


def block_sites(config: model_config.TransformerConfig, opening: bool = True) -> tuple[sites.Site, ...]:
  """The sites of a block, paths relative to it; `opening` as in `Block`."""
  expand = ('mlp/gate', 'mlp/up') if config.gated else ('mlp/up',)
  shifts = config.norm == 'layer'
  # A positive scale of `up` passes through a product with the gate, and through a ReLU.
  scales_pass = config.gated or config.activation == 'relu'
  projections = ('attention/q', 'attention/k', 'attention/v')
  first = sites.Site('attention/input', 'attention_norm', projections, True,
                     'attention_residual' if config.post_norm else None, shifts, opens_attention=True)
  return (
      first if opening else first._replace(producer=None, residual=None, shifts=False),
      # Probabilities sum to one, so that a shift of the values passes through the mix, too.
      sites.Site('attention/o/input', 'attention/v', ('attention/o',),
                 shifts=config.qkv_bias and config.output_bias,
                 repeats=config.heads // config.kv_heads, run=config.head_dim, through=('attention/value',)),
      sites.Site('mlp/input', 'mlp_norm', expand, True, 'mlp_residual' if config.post_norm else None, shifts),
      sites.Site('mlp/down/input', 'mlp/up' if scales_pass else None, ('mlp/down',)),
  )


def block_operands() -> tuple[sites.Site, ...]:
  """The operands of a block that can be observed: queries and keys behind their rotation, and values.

  Probabilities are not among them, since fused attention never has them as an array.
  """
  return tuple(sites.Site(f'attention/{name}', None, ()) for name in attention.OPERANDS if name != 'probabilities')


def residual_initializer(config):
  """Output projections start smaller, so that the residual stream does not grow with depth (GPT-2)."""
  return nn.initializers.normal(0.02 / (2 * config.layers) ** 0.5)
