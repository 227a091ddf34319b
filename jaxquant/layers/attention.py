"""Self-attention with grouped keys and values, every projection through the one evaluator."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxquant.layers import cache
from jaxquant.layers import device_kernels
from jaxquant.layers import inputs
from jaxquant.layers import linear
from jaxquant.layers import norms
from jaxquant.layers import positions as position_layers
from jaxquant.layers import sharding
from jaxquant.layers import tap
from kernels import attention as kernel
from kernels import dispatch

OPERANDS = ('query', 'key', 'value', 'probabilities')


class Attention(nn.Module):
  """Attention over the tokens so far, or over all of them.

  The subtree holds the linears `q`, `k`, `v`, `o`; optionally `input`, the specification of the activation that q, k
  and v share; and optionally a specification for each of `OPERANDS`, applied after the rotation and before the
  products.

  Attributes:
    heads, kv_heads, head_dim: heads divide evenly over kv_heads.
    width: features of the residual stream.
    use_bias, output_bias: biases of q, k and v, and of o, at initialization.
    causal: whether later tokens are hidden.
    rotation: the rotary frequencies, or None for no rotation.
    alibi: whether scores fall linearly with distance (layers.positions.alibi_bias).
    window: tokens that a token attends to, itself included; None: all of them.
    head_norm_epsilon: of the norms of queries and keys, head by head, before the rotation; None for no such norms.
    backend: `xla`, `cudnn`, or `auto`: cuDNN's fused kernel on a GPU, for an even number of tokens in 16 bits.
    implementation: how codes meet codes (layers.linear).
    taps: statistics to read.
    output_initializer: of `o`.
  """

  heads: int
  kv_heads: int
  head_dim: int
  width: int
  causal: bool = True
  use_bias: bool = False
  output_bias: bool = False
  rotation: position_layers.Rotation | None = None
  alibi: bool = False
  window: int | None = None
  head_norm_epsilon: float | None = None
  backend: str = 'auto'
  implementation: str = 'simulated'
  taps: tuple[tap.Tap, ...] = ()
  output_initializer: nn.initializers.Initializer = nn.initializers.normal(0.02)

  @nn.compact
  def __call__(self, x, positions=None, first=False):
    """Attention of tokens over each other, or over those in the cache and each other.

    Args:
      x: [batch, tokens, features], an array, `inputs.Pending` or `norms.Normed`, or as `input` has prepared it.
      positions: int32 [batch, tokens] where there is a cache (layers.cache), to which the tokens are added; None: 0, 1,
        ...
      first: whether that cache holds no token yet, so that the tokens, from position 0 on, attend to each other alone.

    Returns:
      [batch, tokens, width].
    """
    dense = lambda features, name, use_bias=self.use_bias, **kwargs: linear.Linear(
        features, use_bias=use_bias, implementation=self.implementation, taps=self.taps, name=name, **kwargs)
    specifications = self.variables.get('params', {})
    prepared = x if isinstance(x, inputs.Activation) else tap.prepare(
        self, self.taps, specifications.get('input'), x)
    split = lambda y, heads: y.reshape(*y.shape[:-1], heads, self.head_dim)
    if 'qkv' in specifications:  # joined for a device (layers.device_kernels)
      heads = self.heads + 2 * self.kv_heads
      joined = split(dense(heads * self.head_dim, 'qkv')(prepared), heads)
      q, k, v = jnp.split(joined, (self.heads, self.heads + self.kv_heads), axis=-2)
    else:
      q = split(dense(self.heads * self.head_dim, 'q')(prepared), self.heads)
      k = split(dense(self.kv_heads * self.head_dim, 'k')(prepared), self.kv_heads)
      v = split(dense(self.kv_heads * self.head_dim, 'v')(prepared), self.kv_heads)
    if self.head_norm_epsilon is not None:
      q, k = (norms.RMSNorm(self.head_norm_epsilon, name=f'{name}_norm')(a) for name, a in (('q', q), ('k', k)))
    places = jnp.arange(q.shape[-3]) if positions is None else positions
    angles = self.rotation and position_layers.rotary_angles(places, self.head_dim, self.rotation)
    if positions is not None and not first and self._in_one_kernel(q, specifications):
      attend = functools.partial(
          cache.attend, self, jnp.concatenate([q, k, v], axis=-2)[:, 0], positions[:, 0],
          angles and tuple(part[:, 0, 0] for part in angles), self.window)
      mixed = inputs.Made(lambda *static: attend(*static).reshape(len(q), 1, self.heads * self.head_dim), q.dtype)
    else:
      mixed = self._attend(q, k, v, specifications, positions, first, angles)
      mixed = mixed.reshape(*mixed.shape[:-2], self.heads * self.head_dim)
    return dense(self.width, 'o', self.output_bias, initializer=self.output_initializer)(mixed)

  def _in_one_kernel(self, q, specifications: dict) -> bool:
    """Whether a kernel may take a step over the cache whole: of single tokens, with nothing to do or see in between."""
    others = set(OPERANDS) - set(cache.OPERANDS)
    return (self.implementation in device_kernels.OF_GPUS and q.shape[-3] == 1 and not self.alibi and not self.taps
            and not others & set(specifications) and cache.writable(self, specifications) and sharding.on_one_device())

  def _attend(self, q, k, v, specifications: dict, positions, first: bool, angles):
    """The mixed values [batch, tokens, heads, head_dim]; q, k and v are not rotated yet."""
    if angles is not None:
      q, k = kernel.rotate(q, angles), kernel.rotate(k, angles)
    prepared = [tap.prepare(self, self.taps, specifications.get(name), a, name)
                for name, a in zip(OPERANDS, (q, k, v))]
    slots = None if positions is None else cache.extend(self, *prepared[1:], positions, first)
    q, k, v = (activation.values for activation in prepared)
    bias = lambda places, keys: position_layers.alibi_bias(self.heads, places, keys) if self.alibi else None
    probabilities = specifications.get('probabilities')
    if positions is None or first:
      return attend(q, k, v, probabilities, self.backend, self.causal,
                    bias=bias(jnp.arange(q.shape[-3]), k.shape[-3]), window=self.window)
    return kernel.attend(q, *slots, positions, window=self.window, bias=bias(positions, slots[0].shape[-2]),
                         prepare=lambda weights: inputs.prepare(probabilities, weights).values)


def attend(
    q, k, v, probabilities: dict | None, backend: str, causal: bool = True, *, bias=None, window: int | None = None):
  """Attention of q [batch, tokens, heads, dim] over k and v [batch, keys, kv_heads, dim].

  Args:
    q, k, v: floating arrays of one dtype, as the products read them.
    probabilities: input specification of the probabilities, or None.
    backend, causal, window: see `Attention`; a window needs `causal`.
    bias: float32 [heads, queries, keys], added to the scores, or None.

  Returns:
    [batch, tokens, heads, dim] in the dtype of `q`.
  """
  if probabilities is None:
    bias = None if bias is None else bias.reshape(-1, *bias.shape[-3:]).astype(q.dtype)
    return jax.nn.dot_product_attention(
        q, k, v, bias, is_causal=causal, local_window_size=None if window is None else (window - 1, 0),
        implementation=_backend(backend, q))
  k, v = (jnp.repeat(a, q.shape[-2] // a.shape[-2], axis=-2) for a in (k, v))
  scores = jnp.einsum('bqhd,bkhd->bhqk', q, k, preferred_element_type=jnp.float32) / q.shape[-1] ** 0.5
  if bias is not None:
    scores += bias
  if causal:
    seen = kernel.seen(jnp.arange(q.shape[-3])[None], k.shape[-3], window)
    scores = jnp.where(seen, scores, -jnp.inf)
  weights = inputs.prepare(probabilities, jax.nn.softmax(scores, axis=-1).astype(q.dtype)).values
  return jnp.einsum('bhqk,bkhd->bqhd', weights, v)


def _backend(backend: str, q):
  # Of an odd number of tokens there is no gradient, and whether one will be asked for cannot be seen here.
  fused = (q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128
           and q.shape[-3] % 2 == 0)
  if backend == 'auto':
    return 'cudnn' if dispatch.device().platform == 'gpu' and fused else 'xla'
  return backend
