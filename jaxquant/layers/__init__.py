"""Layers as functions of the parameter tree.

  tap               named points where a statistic can be read from a running model
  inputs            what happens to an activation before a product: gather, shift, scale, quantizer
  linear            the one evaluator of linear layers, whatever their kernel is made of; embeddings too
  device_kernels    kernels of linear layers as the matmuls of a GPU read them
  device_quantizers quantizers of their inputs, with the sums that those matmuls need
  norms             RMSNorm and LayerNorm
  sharding          where activations live on the mesh
  positions         rotary embeddings
  cache             keys and values of the tokens so far, as numbers or as codes
  attention         causal attention with grouped keys and values
"""
