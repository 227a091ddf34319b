"""Quantized matmuls on plain arrays of codes and scales. Imports jax only; knows no QTensor and no model.

  matmul   quantized_matmul: exact integer accumulation, float32 epilogue; picks an implementation
"""

from kernels.matmul import IMPLEMENTATIONS
from kernels.matmul import quantized_matmul
