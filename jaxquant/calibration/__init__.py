"""Calibration: what a quantizer learns from activations, and the driver that runs it over a model.

  sites        what a model tells calibration about itself: sites and blocks, as data
  transform    the Transform contract: init, observe, search, rewrite
  rules        which transform owns which linear or site
  statistics   mergeable statistics of activations
  driver       block by block: observe, search, rewrite, propagate
"""
