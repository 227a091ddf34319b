"""Models: pure functions of a parameter tree, in Flax Linen.

  config     DecoderConfig: one configurable decoder covers the LLaMA, OPT and GPT-2 styles
  decoder    the decoder, its blocks and its sites
  validate   does a tree fit a model: compared by path and logical shape
"""
