"""Benchmarks, one a file, each with flags of its own and a function `run() -> dict`.

  training     steps of quantization-aware training against the plain step
  ptq          post-training methods: one layer, and whole models block by block
  imports      models of others from the disk, block by block
  kernels      quantized matmuls of one GPU, beside XLA's and torch's
  models       prefill and decoding of whole models, at several precisions
  compilation  what kernels take of an H200, compiled on any machine
"""
