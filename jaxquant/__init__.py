"""jaxquant: low-bit language models in JAX. Quantization is data in the parameter tree.

  compilation   compiler options for programs that are run a few times
  terminal      how a message takes the place of a progress bar
  numerics      formats, QTensor, quantize, quantizers
  layers        the one evaluator of linear layers, attention, norms
  models        decoders in Flax Linen
  calibration   the Transform contract and the block-by-block driver
  transforms    quantization methods
  training      quantization-aware training, regularizers, checkpoints
  data          text, tokenizers, input pipeline
  evaluation    perplexity, precisions, outlier analysis
  report        tables and the HTML report
"""
