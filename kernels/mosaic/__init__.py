"""Kernels in Mosaic GPU for Hopper (compute capability 9.0): products of codes on its 8-bit tensor cores.

  activations      the implementation `mosaic_gpu` of kernels.quantize_activations
  calls            the device, maps over leading axes, no derivative
  configs          how products are cut
  decode           few tokens
  epilogue         scales, offsets, bias, and the way to memory
  matmul           the implementation `mosaic_gpu` of kernels.quantized_matmul
  prefill          many tokens
  products         operands of a product, and its sums with one scale an output or of groups
  registers        unpacking of 4-bit weights
  tiles            shared memory, parameters of compilation
  token_registers  a token in registers: its Hadamard transform, its groups, its codes packed
  weight_only      the implementation `mosaic_gpu` of kernels.weight_only_matmul
"""
