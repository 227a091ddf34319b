"""Calibration: what a quantizer learns from activations, and the driver that runs it over a model.

  sites        what a model tells calibration about itself: sites and blocks, as data
  transform    the Transform contract: init, observe, search, rewrite
  statistics   mergeable statistics: ranges of a tensor
  channels     mergeable statistics: channels, second moments (Hessians)
  samples      mergeable statistics: a sample of whole sequences
  rules        which transform owns which linear or site
  plan         steps and schedules: which transform runs on which block, on which stream
  programs     what is compiled for a block
  driver       block by block: observe, search, rewrite, propagate
  learning     gradient descent on windows of blocks against the full-precision stream
  aliasing     compiled functions that do not copy what they leave alone
  memory       what a run needs, from shapes alone
  stores       where blocks come from and where finished ones are kept
"""
