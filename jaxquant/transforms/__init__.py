"""Quantization methods: one method, one file, the maths on arrays first. A new method is a new file here.

  round_to_nearest   weights to the nearest code
  grids              what a kernel is rounded to: given, or chosen by a step before
  recipes            the driver steps for the usual settings
  activation_ranges  static ranges of activations from calibration: min-max, averages, percentiles
"""
