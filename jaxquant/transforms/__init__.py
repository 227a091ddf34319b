"""Quantization methods: one method, one file, the maths on arrays first. A new method is a new file here.

  round_to_nearest   weights to the nearest code
  grids              what a kernel is rounded to: given, or chosen by a step before
  recipes            the driver steps for the usual settings
  clip_search        narrower weight ranges where they lower the output error
  error_feedback     the solver of GPTQ, on plain arrays
  gptq               weights rounded input by input, later ones making up for earlier errors
  moments            second moments of what linears read, the Hessians of their output errors
  activation_ranges  static ranges of activations from calibration: min-max, averages, percentiles
"""
