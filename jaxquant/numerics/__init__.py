"""Numbers: formats, codes, scales, and the one quantize/dequantize pair that everything else uses.

  codes        codes of an activation, and the values that they stand for
  formats      which codes exist: int2 to int8, uint2 to uint8, and dINT with two codes beside zero
  hadamard     what stands for a transform of channels in a tree
  nodes        dataclasses that live in a parameter tree, and their description as JSON
  packing      several codes in one byte
  qtensor      QTensor: codes, scales and zero points of a quantized array
  quantize     arrays to QTensor and back, the groups that share a scale
  rounding     rounding with a straight-through gradient; the learned-range quantizers' forward and backward
  quantizers   quantizers as nodes: dynamic, learned clip, LSQ, PACT, and the weight quantizer of training
  two_level    scales of groups that are integer multiples of one float for each output
  trees        paths, lookups and replacements in nested dicts
"""
