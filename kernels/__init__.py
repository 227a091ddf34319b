"""Quantized matmuls on plain arrays of codes and scales. Imports jax only; knows no QTensor and no model.

  matmul   quantized_matmul: exact integer accumulation, float32 epilogue; picks an implementation
  prepack  device layouts of weight codes; sums that fold a static activation's offset into the bias
  xla      the implementations of every device, to which the others are held
"""

from kernels.matmul import IMPLEMENTATIONS
from kernels.matmul import quantized_matmul
from kernels.prepack import Layout
