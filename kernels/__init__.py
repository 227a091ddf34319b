"""Quantized matmuls, and steps of attention, on plain arrays. Imports jax only; knows no QTensor and no model.

  activations      quantize_activations: per token or on a static range, with the sums that products need
  attention        decode_attention: single tokens over a cache, from their rotation on
  before           what precedes quantization: a gate, a norm, a shift and a scale of channels, a Hadamard transform
  behind           what becomes of a result: a gate of its features, codes on a static range
  checks           what all public functions refuse
  dint             the integers that codes of dINT stand for
  dispatch         which implementation runs, and the log that says so
  gates            a nonlinearity of some features times others, with which they take turns
  integer_weights  the integers that codes of weights stand for, by themselves or with others of their group
  layouts          prepack: device layouts of weight codes; what folds a static activation's offset into the bias
  matmul           quantized_matmul: exact integer accumulation, float32 epilogue
  mosaic           the implementation for Hopper
  problems         what kernels are configured for, and which configurations fit
  rule             configurations that nobody measured
  static_ranges    ranges of activations that are known before these are
  tuning           which configuration runs: a measured one, else the rule's
  weight_only      weight_only_matmul: activations that are not quantized
  xla              the implementations of every device, to which the others are held

What chooses by itself chooses when it is traced, and kernels of Mosaic have no derivative: `jax.grad` of a function
that calls one falls back to XLA, that of a jitted function finds the choice made, and raises.
"""

from kernels.activations import quantize_activations
from kernels.attention import Cache
from kernels.attention import decode_attention
from kernels.before import Before
from kernels.behind import Behind
from kernels.layouts import Layout
from kernels.layouts import prepack
from kernels.matmul import DEVICE_IMPLEMENTATIONS
from kernels.matmul import IMPLEMENTATIONS
from kernels.matmul import quantized_matmul
from kernels.mosaic.calls import check_device
from kernels.static_ranges import StaticRange
from kernels.weight_only import weight_only_matmul
