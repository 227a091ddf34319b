"""Models: pure functions of a parameter tree, in Flax Linen.

  config       TransformerConfig: one configuration covers the LLaMA, OPT, GPT-2 and BERT styles
  blocks       attention and MLP on a residual stream, pre-norm or post-norm
  transformer  what decoders and encoders share
  decoder      language models
  encoder      masked language models
  decoding     logits of the next token, with a cache of keys and values
  staging      any model by its configuration, its sites, and its blocks for calibration
  functions    calibration of a function of your own
  validate     does a tree fit a model: compared by path and logical shape
"""
