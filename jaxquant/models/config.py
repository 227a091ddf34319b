"""Architecture of a transformer as data."""

import dataclasses
import difflib

import jax.numpy as jnp

from jaxquant import errors

_CHOICES = {
    'norm': ('rms', 'layer'),
    'positions': ('rotary', 'learned', 'alibi'),
    'rope_scaling': ('none', 'linear', 'llama3'),
    'activation': ('silu', 'relu', 'gelu', 'gelu_tanh'),
    'dtype': ('bfloat16', 'float16', 'float32'),
    'attention_backend': ('auto', 'xla', 'cudnn'),
}


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """A transformer: a decoder, or an encoder with a masked-language-model head.

  LLaMA style: the defaults. OPT style: norm='layer', positions='learned', activation='relu', gated=False, bias=True,
  tied=True; GPT-2 the same with activation='gelu_tanh'; BLOOM that with positions='alibi', embedding_norm=True; BERT
  the same as OPT with activation='gelu', causal=False, post_norm=True, token_types=2.

  Attributes:
    vocabulary: token ids.
    width: features of the residual stream.
    layers: blocks.
    heads: query heads; `kv_heads` divides it (None: as many).
    head_dim: features of a head (None: width / heads).
    feed_forward: hidden features of the MLP.
    max_length: longest sequence; rows of the learned position table.
    norm, norm_epsilon: `rms` or `layer`.
    positions: `rotary` (half-split convention), `learned` or `alibi`.
    rope_theta, rope_scaling, rope_factor, rope_low_factor, rope_high_factor, rope_original_length: of rotary positions,
      see `layers.positions`.
    activation: `silu`, `relu`, `gelu` (exact) or `gelu_tanh`.
    gated: a gate projection multiplies the up projection (SwiGLU with `silu`).
    bias: biases in all linears of the blocks; `qkv_bias`, `output_bias` and `mlp_bias`: in some of them.
    head_norm: queries and keys are normalized head by head, before their rotation (Qwen3).
    sliding_window: tokens that a token of a decoder attends to, itself included; None: all before it.
    embedding_norm: another norm between the embedding and the blocks (BLOOM).
    opening_norm: whether the first block begins with a norm; without it, `post_norm` is OPT-350M's.
    embedding_width: features of the embedding, which linears project to `width` and back (OPT-350M); None: `width`.
    tied: the head reads the embedding's kernel.
    head: whether an encoder has a masked-language-model head; without it, its logits are the normalized last stream.
    causal: tokens attend to those before them only; an encoder's attend both ways.
    post_norm: residual branches read what the norms put out (BERT, OPT-350M), see `models.blocks.Block`.
    token_types: rows of an encoder's table of segment types; 0 for none.
    mask_token: the token that hides another from an encoder; None: the last one, which its tokenizer does not use then.
    dtype: of activations and products; parameters are float32.
    remat: recompute each block in the backward pass.
    attention_backend: `auto`, `xla` or `cudnn`.
  """

  vocabulary: int
  width: int
  layers: int
  heads: int
  feed_forward: int
  kv_heads: int | None = None
  head_dim: int | None = None
  max_length: int = 2048
  norm: str = 'rms'
  norm_epsilon: float = 1e-5
  positions: str = 'rotary'
  rope_theta: float = 10_000.0
  rope_scaling: str = 'none'
  rope_factor: float = 1.0
  rope_low_factor: float = 1.0
  rope_high_factor: float = 4.0
  rope_original_length: int = 8192
  activation: str = 'silu'
  gated: bool = True
  bias: bool = False
  qkv_bias: bool = False
  output_bias: bool = False
  mlp_bias: bool = False
  head_norm: bool = False
  sliding_window: int | None = None
  embedding_norm: bool = False
  opening_norm: bool = True
  embedding_width: int | None = None
  tied: bool = False
  causal: bool = True
  head: bool = True
  post_norm: bool = False
  token_types: int = 0
  mask_token: int | None = None
  dtype: str = 'bfloat16'
  remat: bool = False
  attention_backend: str = 'auto'

  def __post_init__(self):
    object.__setattr__(self, 'kv_heads', self.kv_heads or self.heads)
    if self.head_dim is None:
      if self.width % self.heads:
        raise errors.UserError(f'model.width {self.width} is not a multiple of model.heads {self.heads}')
      object.__setattr__(self, 'head_dim', self.width // self.heads)
    if self.embedding_width is None:
      object.__setattr__(self, 'embedding_width', self.width)
    if self.bias:
      for part in ('qkv_bias', 'output_bias', 'mlp_bias'):
        object.__setattr__(self, part, True)
    if not self.causal and self.mask_token is None:
      object.__setattr__(self, 'mask_token', self.vocabulary - 1)
    self._check()

  def _check(self):
    if self.heads % self.kv_heads:
      raise errors.UserError(f'model.heads {self.heads} is not a multiple of model.kv_heads {self.kv_heads}')
    if self.positions == 'rotary' and self.head_dim % 2:
      raise errors.UserError(f'rotary positions need an even head_dim, not {self.head_dim}')
    if not self.causal and not self.tied:
      raise errors.UserError(
          "model.causal is False, so model.tied must be True: an encoder's head reads its embedding")
    if self.causal and self.token_types:
      raise errors.UserError(
          f'model.token_types is {self.token_types}, but only an encoder has types, see model.causal')
    if not self.causal and (self.sliding_window or self.embedding_width != self.width):
      raise errors.UserError('an encoder has neither model.sliding_window nor model.embedding_width')
    if not self.opening_norm and not self.post_norm:
      raise errors.UserError('model.opening_norm is False, so model.post_norm must be True')
    for field, choices in _CHOICES.items():
      if getattr(self, field) not in choices:
        raise errors.UserError(f'model.{field} is {getattr(self, field)!r}; there are {", ".join(choices)}')

  @classmethod
  def from_dict(cls, values: dict) -> 'TransformerConfig':
    """A config from its JSON form; raises `UserError` with a suggestion for an unknown key and for a missing one."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
      if key not in fields:
        close = difflib.get_close_matches(key, fields, 1)
        raise errors.UserError(f'unknown model.{key}' + (f'; did you mean model.{close[0]}?' if close else ''))
    if missing := [k for k, f in fields.items() if f.default is dataclasses.MISSING and k not in values]:
      raise errors.UserError(f'the model needs {", ".join(f"model.{key}" for key in missing)}')
    return cls(**values)

  @property
  def projected(self) -> bool:
    """Whether linears project the embedding to the residual stream and back."""
    return self.embedding_width != self.width

  @property
  def text_vocabulary(self) -> int:
    """Tokens that a tokenizer may use where one is trained for the model: an encoder keeps the last to hide others."""
    return self.vocabulary - (not self.causal)

  def to_dict(self) -> dict:
    """The JSON form."""
    return dataclasses.asdict(self)

  @property
  def compute_dtype(self):
    """`dtype` as a JAX dtype."""
    return jnp.dtype(self.dtype)

  @property
  def block_parameters(self) -> int:
    """Weights of all blocks' linears: the non-embedding parameters (norms and biases left out)."""
    attention = 2 * self.width * (self.heads + self.kv_heads) * self.head_dim
    return self.layers * (attention + (3 if self.gated else 2) * self.width * self.feed_forward)

  def training_flops_per_token(self, length: int) -> float:
    """Floating-point operations a token costs in training, forward and backward, without rematerialization.

    Six per weight of a product (head included) and twelve per layer, head feature and attended token, of which
    causality leaves half (PaLM, arXiv:2204.02311, appendix B).
    """
    products = self.block_parameters + self.vocabulary * self.width
    return 6 * products + (6 if self.causal else 12) * self.layers * self.heads * self.head_dim * length
